{{- define "tideover.labels" -}}
app.kubernetes.io/name: tideover
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "tideover.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

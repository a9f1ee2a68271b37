//! Manifests of what the scenarios run. The images are the lab's own; see `images`.

mod with;

pub use with::*;

use std::net::SocketAddr;

/// The file in its container that makes a ticker hang. It removes it, so it must be its own.
pub const HANG: &str = "/tmp/hang";

/// A ProtectedWorkload named `name` for the pods labelled `app: <app>`. `extra` is YAML at the depth of `spec`.
pub fn policy(name: &str, app: &str, extra: &str) -> String {
    format!(
        "\
apiVersion: tideover.dev/v1alpha1
kind: ProtectedWorkload
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
{extra}---
"
    )
}

/// redis under its own user, with a log file and an append-only file in an emptyDir, as a Deployment `store` with a
/// Service of the same name.
pub fn store() -> String {
    "\
apiVersion: v1
kind: Service
metadata: {name: store}
spec:
  selector: {app: store}
  ports: [{port: 6379}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: store}
spec:
  replicas: 1
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 999, runAsGroup: 999, fsGroup: 999}
      terminationGracePeriodSeconds: 5
      containers:
        - name: redis
          image: lab/redis:1
          imagePullPolicy: IfNotPresent
          command: [redis-server, --bind, 0.0.0.0, --protected-mode, 'no', --save, '', --dir, /data, --logfile, /data/redis.log]
          ports: [{containerPort: 6379}]
          resources: {requests: {cpu: 50m, memory: 128Mi}}
          readinessProbe: {tcpSocket: {port: 6379}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, emptyDir: {}}]
---
"
    .to_owned()
}

/// A PostgreSQL under its own user, its database in an emptyDir, with a client in the same container that has `args`, as a Deployment
/// `name`.
pub fn database(name: &str, args: &[String]) -> String {
    let args = args.iter().map(|arg| format!("'{arg}'")).collect::<Vec<_>>().join(", ");
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      securityContext: {{runAsNonRoot: true, runAsUser: 999, runAsGroup: 999, fsGroup: 999}}
      terminationGracePeriodSeconds: 1
      containers:
        - name: postgres
          image: lab/postgres:1
          imagePullPolicy: IfNotPresent
          args: [{args}]
          resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
          volumeMounts: [{{name: data, mountPath: /data}}]
      volumes: [{{name: data, emptyDir: {{}}}}]
---
"
    )
}

/// A pod `name` that runs the probe with `args`, to its end, on any node but `never_on`. Nothing owns it, so on a node that
/// is drained it would be in the way.
pub fn probe(name: &str, never_on: &str, args: &[&str]) -> String {
    let args = args.iter().map(|arg| format!("'{arg}'")).collect::<Vec<_>>().join(", ");
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
          - matchExpressions: [{{key: kubernetes.io/hostname, operator: NotIn, values: [{never_on}]}}]
  containers:
    - {{name: probe, image: 'lab/probe:1', imagePullPolicy: IfNotPresent, args: [{args}]}}
---
"
    )
}

/// A Deployment `name` of one process that holds memory of every kind, and looks at every page of it again and again.
pub fn zoo(name: &str, collector: SocketAddr) -> String {
    const MEMORY: usize = 160;
    let lines = Ticker { mib: MEMORY, collector }.deployment(name);
    let lines = lines.lines().map(|line| match line.split_once("args: [tick,") {
        Some((indent, _)) => format!("{indent}args: [zoo, '--report={collector}']\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// One of several tickers in a pod.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Name of its container.
    pub container: &'static str,
    /// The container whose count it looks at. Nothing is seen of the others by one that looks at its own.
    pub watches: &'static str,
    /// It is an init container that goes on running.
    pub sidecar: bool,
    /// The ticker.
    pub ticker: Ticker,
}

impl Member {
    fn container(&self) -> String {
        let Self { container, watches, sidecar, ticker } = self;
        let words = ticker.words().into_iter().skip(1);
        let counts = [format!("--ours=/shared/{container}"), format!("--theirs=/shared/{watches}")];
        let words: String = words.chain(counts).map(|word| format!(", '{word}'")).collect();
        let more = if *sidecar { ", restartPolicy: Always" } else { "" };
        format!(
            "        - {{name: {container}, image: 'lab/probe:1', imagePullPolicy: IfNotPresent, args: [tick{words}], \
             securityContext: {{runAsUser: 1000}}, resources: {{requests: {{cpu: 10m, memory: {}Mi}}}}, \
             volumeMounts: [{{name: shared, mountPath: /shared}}]{more}}}\n",
            ticker.mib + 16
        )
    }
}

/// A Deployment `name` of pods with these containers. Each ticks to a collector of its own, counts in a file of an emptyDir, and
/// ends itself where the count that it looks at goes back.
pub fn several(name: &str, members: &[Member]) -> String {
    let of_kind = |sidecar: bool| -> String {
        members.iter().filter(|member| member.sidecar == sidecar).map(Member::container).collect()
    };
    let sidecars = match of_kind(true) {
        none if none.is_empty() => none,
        some => format!("      initContainers:\n{some}"),
    };
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {{fsGroup: 1000}}
      volumes: [{{name: shared, emptyDir: {{}}}}]
{sidecars}      containers:
{}---
",
        of_kind(false)
    )
}

/// A Deployment `name` of a redis in a container `store`, and of a client in another that listens to it through a unix socket.
pub fn store_by_socket(name: &str) -> String {
    const SOCKET: &str = "/shared/redis.sock";
    let container = |container: &str, words: &str| {
        format!(
            "        - {{name: {container}, image: 'lab/redis:1', imagePullPolicy: IfNotPresent, command: [{words}], \
             resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}, \
             volumeMounts: [{{name: shared, mountPath: /shared}}]}}\n"
        )
    };
    let store = container("store", &format!("redis-server, --save, '', --port, '0', --unixsocket, {SOCKET}"));
    let client = container("client", &format!("redis-cli, -s, {SOCKET}, subscribe, news"));
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsUser: 999, runAsGroup: 999, fsGroup: 999}}
      volumes: [{{name: shared, emptyDir: {{}}}}]
      containers:
{store}{client}---
"
    )
}

/// What a ticker holds and does.
#[derive(Debug, Clone, Copy)]
pub struct Ticker {
    /// Resident memory, MiB.
    pub mib: usize,
    /// Where ticks go.
    pub collector: SocketAddr,
}

impl Ticker {
    fn words(self) -> Vec<String> {
        let Self { mib, collector } = self;
        vec!["tick".to_owned(), format!("--mib={mib}"), format!("--report={collector}"), "--log=/tmp/ticks".to_owned()]
    }

    /// As a Deployment `name` of one replica.
    pub fn deployment(self, name: &str) -> String {
        probe_deployment(name, self.mib, &self.words())
    }

    /// As a pod `name` that nothing owns.
    pub fn pod(self, name: &str) -> String {
        format!(
            "\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
{}---
",
            pod_spec(2, self.mib, &self.words())
        )
    }
}

/// Where a ticker with files has them.
const FILES: &str = "/data";

impl Ticker {
    /// As the only pod of a StatefulSet `name`, with files; see [`Ticker::with_files`].
    pub fn stateful_set(self, name: &str) -> String {
        format!(
            "\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: None, selector: {{app: {name}}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  replicas: 1
  serviceName: {name}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
{}---
",
            self.with_files(6)
        )
    }

    /// As the pod of a Job `name` that takes no failure, with files. It ends, with success, when the file `end` is in its volume.
    pub fn job(self, name: &str) -> String {
        format!(
            "\
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  backoffLimit: 0
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      restartPolicy: Never
{}---
",
            self.with_files(6)
        )
    }

    /// Looks at its memory all the time, and ends itself where any of it is not what it should be. In the volume `data` are its log
    /// `ticks`; its `count`, which it reads again at each tick, and ends itself where that went back; and `seed`, which is another at
    /// each start of a pod.
    fn with_files(self, indent: usize) -> String {
        let log = format!("--log={FILES}/ticks");
        let mut words = self.words();
        words.retain(|word| !word.starts_with("--log="));
        let counts = [format!("--ours={FILES}/count"), format!("--theirs={FILES}/count")];
        words.extend([log, format!("--end={FILES}/end")].into_iter().chain(counts));
        let more = format!(
            "    volumeMounts: [{{name: data, mountPath: {FILES}}}]
initContainers:
  - name: seed
    image: lab/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'head -c 4194304 /dev/urandom > {FILES}/seed']
    volumeMounts: [{{name: data, mountPath: {FILES}}}]
securityContext: {{fsGroup: 1000}}
volumes: [{{name: data, emptyDir: {{}}}}]
"
        );
        let more: String = more.lines().map(|line| format!("{:indent$}{line}\n", "")).collect();
        with_checked_pages(&pod_spec(indent, self.mib, &words), 64) + &more
    }
}

/// The probe with `args`, which holds `mib` MiB, as a Deployment `name` of one replica.
pub fn probe_deployment(name: &str, mib: usize, args: &[String]) -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
{}---
",
        pod_spec(6, mib, args)
    )
}

fn pod_spec(indent: usize, mib: usize, args: &[String]) -> String {
    let (command, flags) = args.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let flags: String = flags.iter().map(|flag| format!(", '{flag}'")).collect();
    let text = format!(
        "\
terminationGracePeriodSeconds: 1
containers:
  - name: ticker
    image: lab/probe:1
    imagePullPolicy: IfNotPresent
    args: [{command}{flags}]
    securityContext: {{runAsUser: 1000}}
    resources: {{requests: {{cpu: 10m, memory: {}Mi}}}}
",
        mib + 16
    );
    text.lines().map(|line| format!("{:indent$}{line}\n", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticker_is_told_how_to_hold_its_memory_and_whom_to_answer() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        assert!(with_shared_memory(&ticker.pod("a")).contains("args: [tick, --shared, '--mib=1'"));
        assert!(with_scattered_memory(&ticker.pod("a")).contains("args: [tick, --scattered, '--mib=1'"));
        assert!(with_watchdog(&ticker.pod("a")).contains("args: [tick, --notify, --hang=/tmp/hang, '--mib=1'"));
    }

    #[test]
    fn a_ticker_is_told_what_to_write_and_what_it_may_use() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        let manifest = with_cpu_limit(&with_written_memory(&ticker.pod("a"), 7), "100m");
        assert!(manifest.contains("args: [tick, --dirty-pages=7, '--mib=1'"), "{manifest}");
        assert!(
            manifest.contains("resources: {limits: {cpu: 100m}, requests: {cpu: 10m, memory: 17Mi}}"),
            "{manifest}"
        );
        let manifest = with_cpu_request(&manifest, "1");
        assert!(manifest.contains("requests: {cpu: 1, memory: 17Mi}"), "{manifest}");
    }

    #[test]
    fn the_tickers_of_a_pod_count_in_each_others_sight() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        let member = |container, watches, sidecar| Member { container, watches, sidecar, ticker };
        let two = several("a", &[member("beside", "app", true), member("app", "beside", false)]);
        assert!(two.contains("'--ours=/shared/app', '--theirs=/shared/beside']"), "{two}");
        assert!(two.contains("'--ours=/shared/beside', '--theirs=/shared/app']"), "{two}");
        let init = two.find("initContainers:").expect("a sidecar");
        assert!(two[init..].contains("restartPolicy: Always}\n      containers:\n"), "{two}");
        assert!(!several("a", &[member("app", "app", false)]).contains("initContainers"));
    }

    #[test]
    fn a_ticker_with_files_has_its_log_where_they_are() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        for manifest in [ticker.stateful_set("a"), ticker.job("a")] {
            assert!(manifest.contains("'--log=/data/ticks'") && !manifest.contains("/tmp/ticks"), "{manifest}");
            for document in manifest.split("---\n").filter(|document| !document.is_empty()) {
                serde_yaml::from_str::<serde_yaml::Value>(document).expect("YAML");
            }
        }
    }

    #[test]
    fn a_store_is_created_before_the_ticker() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        let with = with_store(&ticker.deployment("a"));
        assert!(with.contains("\n      containers:\n        - {name: store,"), "{with}");
        assert!(with.find("name: store") < with.find("name: ticker"), "{with}");
    }

    #[test]
    fn a_zoo_is_no_ticker() {
        let manifest = zoo("a", SocketAddr::from(([10, 0, 0, 1], 1)));
        assert!(
            manifest.contains("    args: [zoo, '--report=10.0.0.1:1']\n") && !manifest.contains("[tick"),
            "{manifest}"
        );
    }

    #[test]
    fn an_init_container_is_put_beside_the_containers() {
        let ticker = Ticker { mib: 1, collector: SocketAddr::from(([10, 0, 0, 1], 1)) };
        for (manifest, depth) in [(ticker.pod("a"), 2), (ticker.deployment("a"), 6)] {
            let with = with_init_container(&manifest);
            let added: Vec<_> = with.lines().filter(|line| !manifest.lines().any(|before| before == *line)).collect();
            assert_eq!(added.len(), 1, "{with}");
            assert!(added[0].starts_with(&format!("{:depth$}initContainers: [{{name: prepare", "")), "{with}");
        }
    }
}

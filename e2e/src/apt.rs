//! Finds out from where this machine gets its Debian packages.
//!
//! Owns the reading of apt's two source formats, see sources.list(5). Never downloads anything.

use std::fs;
use std::path::Path;

/// The base address of the Debian mirror that this machine's apt uses, if it uses one.
pub fn debian_mirror() -> Option<String> {
    let mut found = read("/etc/apt/sources.list", parse_one_line);
    let listed = fs::read_dir("/etc/apt/sources.list.d").ok();
    let mut files: Vec<_> = listed.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(read(&path, parse_one_line)),
            Some("sources") => found.extend(read(&path, parse_deb822)),
            _ => {}
        }
    }
    choose(&found)
}

/// What matters of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
}

fn read(path: impl AsRef<Path>, parse: fn(&str) -> Vec<Source>) -> Vec<Source> {
    // A file that cannot be read is as good as none: debootstrap's own default remains.
    fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

/// The first source of Debian's main archive: not security updates, not a third party's packages.
fn choose(sources: &[Source]) -> Option<String> {
    let is_main_archive = |source: &&Source| {
        let uri = source.uri.trim_end_matches('/');
        let remote = ["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme));
        let last = uri.rsplit('/').next().unwrap_or_default();
        remote
            && last == "debian"
            && !source.suite.contains("security")
            && source.components.iter().any(|name| name == "main")
    };
    sources.iter().find(is_main_archive).map(|source| source.uri.trim_end_matches('/').to_owned())
}

/// `deb [options] uri suite component...`, one a line.
fn parse_one_line(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_ascii_whitespace().map(str::to_owned);
        Some(Source { uri: words.next()?, suite: words.next()?, components: words.collect() })
    };
    text.lines().filter_map(parse).collect()
}

/// Paragraphs of `Field: value`, separated by empty lines; a line that starts with a blank continues the field.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(paragraph(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn paragraph(fields: &[(String, String)]) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> {
        let value = fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value);
        value.split_ascii_whitespace().map(str::to_owned).collect()
    };
    let disabled = words("enabled").first().is_some_and(|value| matches!(value.as_str(), "no" | "false" | "0"));
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let (suites, components) = (words("suites"), words("components"));
    let each = |uri: String| {
        let components = components.clone();
        suites.clone().into_iter().map(move |suite| Source { uri: uri.clone(), suite, components: components.clone() })
    };
    words("uris").into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_the_new_format() {
        let text = "\
# a comment
Types: deb deb-src
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/debian/
Suites: bookworm
  bookworm-updates
Components: main contrib
";
        assert_eq!(choose(&parse_deb822(text)).unwrap(), "http://mirror.example/debian");
    }

    #[test]
    fn the_mirror_is_found_in_the_old_format() {
        let text = "\
# deb http://commented.example/debian sid main
deb https://packages.example/tool stable main
deb http://mirror.example/debian bookworm-security main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian bookworm main # trailing
deb-src http://mirror.example/debian bookworm main
";
        assert_eq!(parse_one_line(text).len(), 3);
        assert_eq!(choose(&parse_one_line(text)).unwrap(), "http://mirror.example/debian");
    }

    #[test]
    fn a_disabled_or_local_source_is_no_mirror() {
        let disabled = "Types: deb\nURIs: http://a.example/debian\nSuites: sid\nComponents: main\nEnabled: no\n";
        assert_eq!(choose(&parse_deb822(disabled)), None);
        assert_eq!(choose(&parse_one_line("deb file:/srv/debian sid main\n")), None);
    }
}

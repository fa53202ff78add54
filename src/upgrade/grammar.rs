//! How the URLs of each [`Dialect`] are read and written.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Dialect, Refusal, StreamOptions, Subresource, Target};

// A known bug for the fuzz target `upgrade_headers` to find: an argument with `&` becomes an option.
#[cfg(planted)]
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'&');

/// What Go's `url.QueryEscape` leaves as it is; a space becomes `+` there, `%20` here, which every reader takes.
#[cfg(not(planted))]
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl Target {
    /// Reads a request line. `None`: not a streaming URL of `dialect`.
    ///
    /// # Errors
    ///
    /// The refusal of a streaming URL with a wrong method or options, in upstream's words.
    pub(crate) fn parse(dialect: Dialect, method: &Method, uri: &Uri) -> Option<(Subresource, Result<Self, Refusal>)> {
        let segments: Vec<&str> = uri.path().strip_prefix('/')?.split('/').collect();
        let target = match dialect {
            Dialect::ApiServer => api_server_path(&segments)?,
            Dialect::Kubelet => kubelet_path(&segments)?,
        };
        Some((target.subresource, target.with_options(method, &Query::new(uri))))
    }

    fn with_options(mut self, method: &Method, query: &Query<'_>) -> Result<Self, Refusal> {
        if method != Method::GET && method != Method::POST {
            return Err(Refusal::method_not_allowed());
        }
        self.options = match self.dialect {
            Dialect::ApiServer => api_server_options(self.subresource, query, &mut self.container),
            Dialect::Kubelet => kubelet_options(self.subresource, query),
        }?;
        self.check_names()?;
        Ok(self)
    }

    /// Names that are more than one segment of a path, for whoever reads it decoded or cleaned: a Go kubelet does both.
    /// The rules and words are upstream's for object names (`IsValidPathSegmentName`).
    fn check_names(&self) -> Result<(), Refusal> {
        for name in [Some(&self.namespace), Some(&self.pod), self.container.as_ref()].into_iter().flatten() {
            let why = match name.as_str() {
                "." => "may not be '.'",
                ".." => "may not be '..'",
                name if name.contains('/') => "may not contain '/'",
                name if name.contains('%') => "may not contain '%'",
                _ => continue,
            };
            return Err(Refusal::bad_request(format!("Name parameter invalid: {name:?}: {why}")));
        }
        Ok(())
    }

    /// Path and query of this target at a kubelet: `/exec/{ns}/{pod}/{container}?command=…&input=1`.
    ///
    /// Upstream's `streamLocation` (`pkg/registry/core/pod/strategy.go`): other names than at the API server, and only
    /// what is true is written.
    #[must_use]
    pub fn kubelet_path_and_query(&self) -> String {
        let mut out = String::from(match self.subresource {
            Subresource::Exec => "/exec",
            Subresource::Attach => "/attach",
            Subresource::PortForward => "/portForward",
        });
        let container = self.container.as_deref();
        for segment in [Some(&*self.namespace), Some(&*self.pod), container].into_iter().flatten() {
            out.push('/');
            out.extend(utf8_percent_encode(segment, QUERY));
        }
        let options = &self.options;
        let mut separator = '?';
        let mut pair = |name: &str, value: &str| {
            out.push(separator);
            separator = '&';
            out.push_str(name);
            out.push('=');
            out.extend(utf8_percent_encode(value, QUERY));
        };
        for argument in &options.command {
            pair("command", argument);
        }
        let flags =
            [("error", options.stderr), ("input", options.stdin), ("output", options.stdout), ("tty", options.tty)];
        for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
            pair(name, "1");
        }
        if !options.ports.is_empty() {
            let ports: Vec<String> = options.ports.iter().map(u16::to_string).collect();
            pair("port", &ports.join(","));
        }
        out
    }
}

fn subresource(name: &str) -> Option<Subresource> {
    [Subresource::Exec, Subresource::Attach, Subresource::PortForward].into_iter().find(|s| s.as_str() == name)
}

fn api_server_path(segments: &[&str]) -> Option<Target> {
    let ["api", "v1", "namespaces", namespace, "pods", pod, last] = segments else { return None };
    target(Dialect::ApiServer, subresource(last)?, namespace, pod, None, None)
}

fn kubelet_path(segments: &[&str]) -> Option<Target> {
    let (first, rest) = segments.split_first()?;
    let subresource = match *first {
        "exec" => Subresource::Exec,
        "attach" => Subresource::Attach,
        "portForward" => Subresource::PortForward,
        _ => return None,
    };
    match (subresource, rest) {
        (Subresource::PortForward, [namespace, pod]) => {
            target(Dialect::Kubelet, subresource, namespace, pod, None, None)
        }
        (Subresource::PortForward, [namespace, pod, uid]) => {
            target(Dialect::Kubelet, subresource, namespace, pod, Some(uid), None)
        }
        (Subresource::Exec | Subresource::Attach, [namespace, pod, container]) => {
            target(Dialect::Kubelet, subresource, namespace, pod, None, Some(container))
        }
        (Subresource::Exec | Subresource::Attach, [namespace, pod, uid, container]) => {
            target(Dialect::Kubelet, subresource, namespace, pod, Some(uid), Some(container))
        }
        _ => None,
    }
}

fn target(
    dialect: Dialect,
    subresource: Subresource,
    namespace: &str,
    pod: &str,
    uid: Option<&&str>,
    container: Option<&&str>,
) -> Option<Target> {
    let segment = |raw: &str| {
        let decoded = percent_decode_str(raw).decode_utf8().ok()?.into_owned();
        (!decoded.is_empty()).then_some(decoded)
    };
    Some(Target {
        subresource,
        namespace: segment(namespace)?,
        pod: segment(pod)?,
        uid: uid.and_then(|raw| segment(raw)),
        container: match container {
            Some(raw) => Some(segment(raw)?),
            None => None,
        },
        options: StreamOptions::default(),
        dialect,
    })
}

fn api_server_options(
    subresource: Subresource,
    query: &Query<'_>,
    container: &mut Option<String>,
) -> Result<StreamOptions, Refusal> {
    if query.first("dryRun").is_some() {
        return Err(Refusal::bad_request("dryRun is not supported"));
    }
    if subresource == Subresource::PortForward {
        let mut ports = Vec::new();
        for list in query.all("ports") {
            for port in list.split(',') {
                ports.push(api_server_port(port)?);
            }
        }
        return Ok(StreamOptions { ports, ..StreamOptions::default() });
    }
    *container = query.first("container").filter(|name| !name.is_empty()).map(Cow::into_owned);
    let flag = |name| query.first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"));
    let tty = flag("tty");
    Ok(StreamOptions {
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        // A terminal has one output; upstream's kubelet drops the flag one hop later.
        stderr: flag("stderr") && !tty,
        tty,
        command: match subresource {
            Subresource::Exec => query.all("command").map(Cow::into_owned).collect(),
            _ => Vec::new(),
        },
        ports: Vec::new(),
    })
}

/// Go's `strconv.ParseUint(port, 10, 16)` and its words.
pub(crate) fn parse_port(port: &str) -> Result<u16, String> {
    let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let why = if plain { "value out of range" } else { "invalid syntax" };
    port.parse().ok().filter(|_| plain).ok_or_else(|| format!("strconv.ParseUint: parsing {port:?}: {why}"))
}

fn api_server_port(port: &str) -> Result<u16, Refusal> {
    parse_port(port).map_err(|why| Refusal::bad_request(format!("cannot convert to []int32: {why}")))
}

fn kubelet_options(subresource: Subresource, query: &Query<'_>) -> Result<StreamOptions, Refusal> {
    if subresource == Subresource::PortForward {
        let mut ports = Vec::new();
        for list in query.all("port") {
            // `NewV4Options` of cri-streaming, which looks at them only over WebSocket; over SPDY nobody sends any.
            let bad = |why: String| Refusal::bad_request(why);
            if list.is_empty() {
                return Err(bad("query parameter \"port\" cannot be empty".into()));
            }
            for port in list.split(',') {
                match parse_port(port) {
                    Ok(0) => return Err(bad(format!("port {list:?} must be > 0"))),
                    Ok(port) => ports.push(port),
                    Err(why) => return Err(bad(format!("unable to parse {list:?} as a port: {why}"))),
                }
            }
        }
        return Ok(StreamOptions { ports, ..StreamOptions::default() });
    }
    let flag = |name| query.first(name).is_some_and(|value| value == "1");
    let tty = flag("tty");
    let options = StreamOptions {
        stdin: flag("input"),
        stdout: flag("output"),
        stderr: flag("error") && !tty,
        tty,
        command: match subresource {
            Subresource::Exec => query.all("command").map(Cow::into_owned).collect(),
            _ => Vec::new(),
        },
        ports: Vec::new(),
    };
    if !(options.stdin || options.stdout || options.stderr) {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(options)
}

/// The pairs of a query, decoded as `application/x-www-form-urlencoded`.
struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    fn new(uri: &'a Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    fn all(&self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        self.0.iter().filter(move |(of, _)| of == name).map(|(_, value)| value.clone())
    }

    fn first(&self, name: &str) -> Option<Cow<'a, str>> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone())
    }
}

/// Percent-decodes, `+` is a space. Bytes that are no UTF-8 become replacement characters, as a program's argument may.
fn decode(raw: &str) -> Cow<'_, str> {
    if raw.contains('+') {
        let spaced = raw.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(raw).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(dialect: Dialect, uri: &str) -> Option<Result<Target, Refusal>> {
        Target::parse(dialect, &Method::GET, &uri.parse().expect("a URI")).map(|(_, parsed)| parsed)
    }

    fn exec(query: &str) -> StreamOptions {
        let uri = format!("/api/v1/namespaces/default/pods/demo/exec?{query}");
        parse(Dialect::ApiServer, &uri).expect("a streaming URL").expect("good options").options
    }

    #[test]
    fn booleans_are_true_unless_zero_or_false_and_only_the_first_counts() {
        assert!(exec("stdin=true").stdin && exec("stdin").stdin && exec("stdin=1").stdin && exec("stdin=no").stdin);
        assert!(!exec("").stdin && !exec("stdin=0").stdin && !exec("stdin=False&stdin=true").stdin);
    }

    #[test]
    fn commands_keep_their_order_and_are_decoded() {
        assert_eq!(exec("command=sh&command=-c&command=a+b%2Bc%26%3D").command, ["sh", "-c", "a b+c&="]);
    }

    #[test]
    fn an_api_server_target_is_rendered_for_the_kubelet_and_read_back_the_same() {
        let uri =
            "/api/v1/namespaces/ns/pods/p/exec?command=echo&command=a%20b/%C3%A9&container=c&stdin=1&stdout=1&stderr=1";
        let asked = parse(Dialect::ApiServer, uri).expect("ours").expect("good");
        let rendered = asked.kubelet_path_and_query();
        assert_eq!(rendered, "/exec/ns/p/c?command=echo&command=a%20b%2F%C3%A9&error=1&input=1&output=1");
        let read = parse(Dialect::Kubelet, &rendered).expect("ours").expect("good");
        assert_eq!(Target { dialect: Dialect::ApiServer, ..read }, asked);
    }

    #[test]
    fn the_kubelets_ports_are_checked_in_gos_words() {
        let ask = |query: &str| {
            let target = parse(Dialect::Kubelet, &format!("/portForward/ns/p?{query}")).expect("ours");
            target.map(|target| target.options.ports).map_err(|refusal| refusal.message().to_owned())
        };
        assert_eq!(ask("port=7000,8000&port=9000"), Ok(vec![7000, 8000, 9000]));
        assert_eq!(ask(""), Ok(vec![]));
        for (query, why) in [
            ("port=", "query parameter \"port\" cannot be empty"),
            ("port=abc", "unable to parse \"abc\" as a port: strconv.ParseUint: parsing \"abc\": invalid syntax"),
            ("port=80,-1", "unable to parse \"80,-1\" as a port: strconv.ParseUint: parsing \"-1\": invalid syntax"),
            (
                "port=65536",
                "unable to parse \"65536\" as a port: strconv.ParseUint: parsing \"65536\": value out of range",
            ),
            ("port=0", "port \"0\" must be > 0"),
        ] {
            assert_eq!(ask(query), Err(why.to_owned()), "{query}");
        }
    }

    #[test]
    fn ports_are_joined_for_the_kubelet_and_bad_ones_refused_in_gos_words() {
        let uri = "/api/v1/namespaces/ns/pods/p/portforward?ports=80&ports=81,82";
        let asked = parse(Dialect::ApiServer, uri).expect("ours").expect("good");
        assert_eq!(asked.kubelet_path_and_query(), "/portForward/ns/p?port=80%2C81%2C82");
        let bad = parse(Dialect::ApiServer, "/api/v1/namespaces/ns/pods/p/portforward?ports=abc").expect("ours");
        assert_eq!(
            bad.expect_err("refused").message(),
            "cannot convert to []int32: strconv.ParseUint: parsing \"abc\": invalid syntax"
        );
    }

    #[test]
    fn a_kubelet_wants_ones_and_at_least_one_stream() {
        let options = |query: &str| parse(Dialect::Kubelet, &format!("/exec/ns/p/u/c?{query}")).expect("ours");
        assert!(options("input=true").is_err());
        let both = options("output=1&error=1&tty=1").expect("good").options;
        assert!(both.tty && both.stdout && !both.stderr, "a terminal has no stderr");
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        for (namespace, pod, container) in [
            ("..", "p", "c"),
            ("n", ".", "c"),
            ("n", "p%2Fu", "c"),
            ("n", "p", "..%2f..%2fother"),
            ("n", "p", "c%2525"),
        ] {
            let api_server = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?stdout=1&container={container}");
            let kubelet = format!("/exec/{namespace}/{pod}/{container}?output=1");
            for (dialect, uri) in [(Dialect::ApiServer, api_server), (Dialect::Kubelet, kubelet)] {
                let refusal = parse(dialect, &uri).expect("ours").expect_err(&uri);
                assert!(refusal.message().starts_with("Name parameter invalid: "), "{uri}");
            }
        }
    }

    #[test]
    fn other_urls_are_not_ours() {
        for uri in ["/", "/api/v1/namespaces/d/pods/p/log", "/api/v1/namespaces/d/pods//exec", "/exec/a/b/c"] {
            assert!(parse(Dialect::ApiServer, uri).is_none(), "{uri}");
        }
        for uri in ["/exec/a/b", "/exec/a/b/c/d/e", "/portforward/a/b", "/run/a/b/c", "/exec/a//c"] {
            assert!(parse(Dialect::Kubelet, uri).is_none(), "{uri}");
        }
    }
}

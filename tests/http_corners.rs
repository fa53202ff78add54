//! What the `apiserver` example answers to requests that no kubectl sends: other methods, no upgrade, headers in every
//! shape, browsers, heads that are too long, HTTP/2. Upstream's words are from recordings of kube-apiserver 1.36.2.

mod support;

use std::{fs, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    Outcome,
    lab::{Lab, Topology, port_in},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

const POD: &str = "/api/v1/namespaces/default/pods/demo";
const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?container=shell&command=true&stdout=true";
const KEY: &str = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13";

/// A running example, and what its clients know.
struct Server {
    lab: Lab,
    port: u16,
    token: String,
    roots: Arc<RootCertStore>,
}

/// A status line's code, the head in lower case, and the body.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Server {
    async fn start() -> Outcome<Self> {
        let lab = Lab::start(Topology::AllInOne).await?;
        let data = lab.kubeconfig.parent().ok_or("the kubeconfig lies nowhere")?;
        let tokens = fs::read_to_string(data.join("tokens.csv")).map_err(|error| error.to_string())?;
        let token = tokens.split(',').next().unwrap_or_default().to_owned();
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(data.join("ca.crt")).map_err(|error| error.to_string())?;
        roots.add(ca).map_err(|error| error.to_string())?;
        let port = port_in(&lab.apiserver.stdout.text()).ok_or("the API server names no port")?;
        Ok(Self { lab, port, token, roots: Arc::new(roots) })
    }

    async fn dial(&self, alpn: &str) -> Outcome<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = config.with_root_certificates(Arc::clone(&self.roots)).with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|error| error.to_string())?;
        let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        ensure!(tls.get_ref().1.alpn_protocol() == Some(alpn.as_bytes()), "{alpn} was not chosen");
        Ok(tls)
    }

    /// Sends a head with the administrator's token, and reads the answer.
    async fn ask(&self, request: &str, lines: &[&str]) -> Outcome<Answer> {
        let authorization = format!("authorization: Bearer {}", self.token);
        self.ask_as(request, &[&[authorization.as_str()], lines].concat()).await
    }

    /// As [`ask`](Self::ask), without the token.
    async fn ask_as(&self, request: &str, lines: &[&str]) -> Outcome<Answer> {
        let mut tls = self.dial("http/1.1").await?;
        let head = format!("{request} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n{}\r\n\r\n", self.port, lines.join("\r\n"));
        tls.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(tls.read_u8().await.map_err(|error| format!("{request}: {error}"))?);
        }
        let head = String::from_utf8_lossy(&bytes).to_lowercase();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status line")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let length = length.filter(|_| !request.starts_with("HEAD") && code != 101).unwrap_or(0);
        let mut body = vec![0; length];
        tls.read_exact(&mut body).await.map_err(|error| error.to_string())?;
        Ok(Answer { code, head, body: String::from_utf8_lossy(&body).trim_end().to_owned() })
    }
}

fn status(message: &str, rest: &str) -> String {
    format!(r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}",{rest}}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_no_kubectl_sends_get_upstreams_answers() -> Outcome {
    let server = Server::start().await?;
    methods(&server).await?;
    headers(&server).await?;
    tokens(&server).await?;
    pages(&server).await?;
    long_heads(&server).await?;
    http_2(&server).await?;
    server.lab.stop().await
}

async fn methods(server: &Server) -> Outcome {
    let not_allowed = status(
        "the server does not allow this method on the requested resource",
        r#""reason":"MethodNotAllowed","details":{},"code":405"#,
    );
    let required = status("Upgrade request required", r#""reason":"BadRequest","code":400"#);
    for subresource in ["exec", "attach", "portforward"] {
        let uri = format!("{POD}/{subresource}?container=shell&command=true&stdout=true");
        for method in ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = server.ask(&format!("{method} {uri}"), &[]).await?;
            ensure!(answer.code == 405, "{method}: {answer:?}");
            ensure!(answer.head.contains("content-type: application/json"), "{method}: {answer:?}");
            ensure!(method == "HEAD" || answer.body == not_allowed, "{method}: {answer:?}");
        }
        for method in ["GET", "POST"] {
            let answer = server.ask(&format!("{method} {uri}"), &[]).await?;
            ensure!(answer.code == 400 && answer.body == required, "{method}: {answer:?}");
        }
    }
    let put = ["connection: Upgrade", "upgrade: websocket", KEY, "sec-websocket-protocol: v5.channel.k8s.io"];
    let answer = server.ask(&format!("PUT {EXEC}"), &put).await?;
    ensure!(answer.code == 405 && answer.body == not_allowed, "{answer:?}");
    let answer = server.ask(&format!("POST {EXEC}"), &put).await?;
    ensure!(answer.code == 405, "a WebSocket handshake is a GET: {answer:?}");
    Ok(())
}

/// Repeated lines and joined ones are the same list, in any case and with any blanks.
async fn headers(server: &Server) -> Outcome {
    let v5 = "sec-websocket-protocol: v5.channel.k8s.io";
    for lines in [
        &["connection: keep-alive, Upgrade", "upgrade: websocket", v5][..],
        &["CONNECTION: UPGRADE", "UPGRADE: WEBSOCKET", "SEC-WEBSOCKET-PROTOCOL: v5.channel.k8s.io"],
        &["Connection: keep-alive", "Connection:  upgrade ", "Upgrade: foo/2", "Upgrade: WebSocket", v5],
        &["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: v4.channel.k8s.io ,v5.channel.k8s.io"],
    ] {
        let answer = server.ask(&format!("GET {EXEC}"), &[lines, &[KEY]].concat()).await?;
        ensure!(answer.code == 101, "{lines:?}: {answer:?}");
        ensure!(answer.head.contains("sec-websocket-protocol: v5.channel.k8s.io\r\n"), "{lines:?}: {answer:?}");
    }
    for lines in [
        &["X-Stream-Protocol-Version: v9.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io"][..],
        &["x-stream-protocol-version: v9.channel.k8s.io", "X-STREAM-PROTOCOL-VERSION:  v4.channel.k8s.io "],
    ] {
        let upgrade = ["connection: close, UPGRADE", "upgrade: spdy/3.1", "content-length: 0"];
        let answer = server.ask(&format!("POST {EXEC}"), &[&upgrade, lines].concat()).await?;
        ensure!(answer.code == 101, "{lines:?}: {answer:?}");
        ensure!(answer.head.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"), "{lines:?}: {answer:?}");
    }
    Ok(())
}

/// A browser cannot set `Authorization`, so its token is a subprotocol.
async fn tokens(server: &Server) -> Outcome {
    let own = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(&server.token));
    let wrong = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode("nobody"));
    let (bad, v5) = ("base64url.bearer.authorization.k8s.io.!", "v5.channel.k8s.io");
    for (protocols, code) in [
        (&[&*own, v5][..], 101),
        (&[&format!("{own}, {v5}")], 101),
        (&[v5, "v4.channel.k8s.io", &own], 101),
        (&[&own], 401),
        (&[&own, &own, v5], 401),
        (&[&own, &wrong, v5], 401),
        (&[&wrong, v5], 401),
        (&[bad, v5], 401),
        (&[v5], 401),
    ] {
        let offers: Vec<String> = protocols.iter().map(|of| format!("sec-websocket-protocol: {of}")).collect();
        let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
        let upgrade = ["connection: Upgrade", "upgrade: websocket", KEY];
        let answer = server.ask_as(&format!("GET {EXEC}"), &[&upgrade, &*offers].concat()).await?;
        ensure!(answer.code == code, "{code} was expected for {} lines: {answer:?}", protocols.len());
        ensure!(!answer.head.contains("bearer"), "the token came back: {answer:?}");
        let body = status("Unauthorized", r#""reason":"Unauthorized","code":401"#);
        ensure!(code == 101 || answer.body == body, "{answer:?}");
    }
    let log = server.lab.apiserver.stderr.text();
    ensure!(log.contains("multiple base64.bearer.authorization tokens specified"), "{log}");
    ensure!(!log.contains(&server.token) && !log.contains(&own), "a token is in the log");
    Ok(())
}

/// A cookie opens no stream for a page of another origin; a token does, as the page knows it.
async fn pages(server: &Server) -> Outcome {
    let own = format!("origin: https://127.0.0.1:{}", server.port);
    let (evil, cookie) = ("origin: https://evil.example", "cookie: session=1");
    for (lines, code) in [(&[evil, cookie][..], 403), (&[&own, cookie], 101), (&[evil], 101), (&[cookie], 101)] {
        let upgrade = ["connection: Upgrade", "upgrade: websocket", KEY, "sec-websocket-protocol: v5.channel.k8s.io"];
        let answer = server.ask(&format!("GET {EXEC}"), &[&upgrade, lines].concat()).await?;
        ensure!(answer.code == code, "{lines:?}: {answer:?}");
    }
    Ok(())
}

async fn long_heads(server: &Server) -> Outcome {
    let padding = |length: usize| format!("x-padding: {}", "x".repeat(length));
    let answer = server.ask(&format!("GET {POD}"), &[&padding(900 << 10)]).await?;
    ensure!(answer.code == 200, "{}", answer.code);
    // The server may close before all is written; then the write or the read fails, which is as good an answer.
    if let Ok(answer) = server.ask(&format!("GET {POD}"), &[&padding((1 << 20) + 1)]).await {
        ensure!(answer.code == 431, "{}", answer.code);
    }
    let answer = server.ask(&format!("GET {POD}"), &[]).await?;
    ensure!(answer.code == 200, "{answer:?}");
    Ok(())
}

async fn http_2(server: &Server) -> Outcome {
    let tls = server.dial("h2").await?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    for (method, uri, code) in [("GET", POD, 200), ("GET", EXEC, 400), ("POST", EXEC, 400), ("PUT", EXEC, 405)] {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{}{uri}", server.port))
            .header("authorization", format!("Bearer {}", server.token))
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let got = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        ensure!(got.as_u16() == code, "{method} {uri}: {got} {body:?}");
        if got == StatusCode::BAD_REQUEST {
            let why = "Upgrade request required: a stream needs HTTP/1.1, and this request came over HTTP/2.0";
            let wanted = status(why, r#""reason":"BadRequest","code":400"#);
            ensure!(body.trim_ascii_end() == wanted.as_bytes(), "{method}: {body:?}");
        }
    }
    drop(sender);
    connection.abort();
    Ok(())
}

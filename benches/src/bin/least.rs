//! A client that does nothing but send stdin into a command: read, mask, encrypt, send; one thread, which waits for each.
//! For `scripts/bench-kubectl`.
//!
//!     least 127.0.0.1:6443 TOKEN CA-FILE < input

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    net::TcpStream,
    process::ExitCode,
    sync::Arc,
};

use tokio_rustls::rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, Stream,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

/// What is read at once.
const PIECE: usize = 256 << 10;

/// Two bytes, eight of the length, four of the mask (RFC 6455, 5.2); and the channel.
const HEAD: usize = 15;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("least: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args().skip(1).collect();
    let [server, token, ca] = &args[..] else { return Err("SERVER TOKEN CA-FILE".into()) };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca)? {
        roots.add(root?)?;
    }
    let mut provider = ring::default_provider();
    // As Go.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let mut socket = TcpStream::connect(server)?;
    upgrade(&mut Stream::new(&mut tls, &mut socket), server, token)?;

    tls.set_buffer_limit(None);
    // Half a page in: a place right behind a page's beginning can take five times as long to read to.
    let mut room = vec![0; 2048 + HEAD + PIECE];
    let buffer = &mut room[2048..];
    let mut stdin = io::stdin().lock();
    loop {
        let length = stdin.read(&mut buffer[HEAD..])?;
        if length == 0 {
            break;
        }
        frame(&mut buffer[..HEAD + length]);
        tls.writer().write_all(&buffer[..HEAD + length])?;
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
    }
    let mut stream = Stream::new(&mut tls, &mut socket);
    // Channel 255: stdin, which is 0, has ended.
    stream.write_all(&[0x82, 0x82, 0, 0, 0, 0, 255, 0])?;
    status(&mut stream)
}

fn upgrade(stream: &mut (impl Read + Write), server: &str, token: &str) -> Result<(), Box<dyn Error>> {
    let command = "container=shell&command=sh&command=-c&command=cat%20%3E/dev/null&stdin=true&stdout=true";
    write!(
        stream,
        "GET /api/v1/namespaces/default/pods/demo/exec?{command} HTTP/1.1\r\nHost: {server}\r\n\
         Authorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    )?;
    stream.flush()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"HTTP/1.1 101 ") { Ok(()) } else { Err(String::from_utf8_lossy(&head).into()) }
}

/// Makes a binary message of what lies behind its head.
fn frame(message: &mut [u8]) {
    let payload = message.len() - (HEAD - 1);
    // Not random, as RFC 6455 wants it: this is a measure, and no client.
    let key = [0x5a, 0xc3, 0x96, 0x0f];
    message[..2].copy_from_slice(&[0x82, 0xff]);
    message[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
    message[10..14].copy_from_slice(&key);
    // Stdin.
    message[14] = 0;
    let double = u64::from_ne_bytes([key, key].concat().try_into().expect("eight bytes"));
    let mut words = message[14..].chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")) ^ double;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// Success alone will do.
fn status(stream: &mut impl Read) -> Result<(), Box<dyn Error>> {
    let mut said = String::new();
    while !said.contains(r#""status":"Success""#) {
        let mut piece = [0; 512];
        match stream.read(&mut piece)? {
            0 => return Err(format!("no success: {said:?}").into()),
            length => said += &String::from_utf8_lossy(&piece[..length]),
        }
    }
    Ok(())
}

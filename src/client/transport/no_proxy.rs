//! Whom no proxy is for: `NO_PROXY` as Go's `golang.org/x/net/http/httpproxy` reads it.

use std::net::IpAddr;

use ipnet::IpNet;

/// What a list excludes.
#[derive(Clone, Debug, Default)]
pub(super) struct NoProxy {
    all: bool,
    networks: Vec<IpNet>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    domains: Vec<Domain>,
}

#[derive(Clone, Debug)]
struct Domain {
    /// With a dot in front.
    suffix: String,
    /// The name behind the dot as well.
    itself: bool,
    port: Option<u16>,
}

impl NoProxy {
    /// Reads a list that is separated by commas: `*`; networks; addresses and names, each with or without a port. A name
    /// is for its subdomains too; with `.` or `*.` in front for those alone. What cannot be read excludes nothing.
    pub(super) fn read(list: &str) -> Self {
        let mut no = Self::default();
        for entry in list.split(',').map(|entry| entry.trim().to_ascii_lowercase()) {
            if entry == "*" {
                no.all = true;
            } else if let Ok(network) = entry.parse() {
                no.networks.push(network);
            } else {
                no.add_host(&entry);
            }
        }
        no
    }

    fn add_host(&mut self, entry: &str) {
        // More than one colon and no bracket is an address.
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (entry, None),
        };
        let port = match port.map(str::parse) {
            Some(Ok(port)) => Some(port),
            Some(Err(_)) => return,
            None => None,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = host.parse() {
            self.addresses.push((address, port));
            return;
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        match host.strip_prefix('.') {
            Some("") => {}
            Some(_) => self.domains.push(Domain { suffix: host.to_owned(), itself: false, port }),
            None if host.is_empty() => {}
            None => self.domains.push(Domain { suffix: format!(".{host}"), itself: true, port }),
        }
    }

    /// Whether `host`, without brackets, is excluded at `port`.
    pub(super) fn excludes(&self, host: &str, port: u16) -> bool {
        let at = |wanted: Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        if self.all {
            return true;
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.networks.iter().any(|network| network.contains(&address))
                || self.addresses.iter().any(|(excluded, port)| *excluded == address && at(*port));
        }
        let host = host.to_ascii_lowercase();
        self.domains.iter().any(|Domain { suffix, itself, port }| {
            (host.ends_with(suffix.as_str()) || *itself && host == suffix[1..]) && at(*port)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ports_addresses_and_networks_are_excluded_as_in_go() {
        // The cases of `TestUseProxy` in x/net/http/httpproxy, but for those of loopback.
        let no = NoProxy::read(
            "foobar.com, .barbaz.net, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, \
                                2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, \
                                *.star.example, bad:port, , *x, :80",
        );
        for (host, excluded) in [
            ("barbaz.net", false),
            ("www.barbaz.net", true),
            ("foobar.com", true),
            ("www.FOOBAR.com", true),
            ("foofoobar.com", false),
            ("baz.com", false),
            ("192.168.1.1", true),
            ("192.168.1.2", false),
            ("192.168.1.3", true),
            ("192.168.1.4", false),
            ("10.0.0.2", true),
            ("10.0.0.4", false),
            ("2001:db8::52:0:1", true),
            ("2001:db8::52:0:2", false),
            ("2001:db8::52:0:3", true),
            ("2002:db8:a::123", true),
            ("fe80::424b:c8be:1643:a1b6", false),
            ("star.example", false),
            ("a.star.example", true),
            ("bad", false),
        ] {
            assert_eq!(no.excludes(host, 80), excluded, "{host}");
        }
        assert!(NoProxy::read("a, *").excludes("anything", 1) && NoProxy::read("*").excludes("::1", 1));
        assert!(!NoProxy::default().excludes("anything", 1));
    }
}

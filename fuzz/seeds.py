"""Writes seeds for the fuzz targets: fuzz/seeds.py DIRECTORY

From the golden bytes of real programs in tests/wire, and by hand for what no real program sends. The handmade ones are
checked in under fuzz/seeds; `fuzz/seeds.py --handmade fuzz/seeds` writes them again.
"""

import base64
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write(to, target, name, data):
    folder = to / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def wire(to):
    for path in sorted((ROOT / "tests/wire").glob("*.txt")):
        head, up, down = [], b"", b""
        for line in path.read_text().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == ">":
                head.append(rest)
            elif kind == ">x":
                up += bytes.fromhex(rest)
            elif kind == "<x":
                down += bytes.fromhex(rest)
        name = "wire-" + path.stem
        if head:
            write(to, "upgrade_headers", name, "\r\n".join(head).encode() + b"\r\n")
        for side, data in (("up", up), ("down", down)):
            if not data:
                continue
            if data[0] & 0x7F in (1, 2, 8, 9, 10):
                role = 0 if side == "up" else 1
                write(to, "websocket_message", f"{name}-{side}", bytes([role | 4, 5]) + data)
                if side == "up":
                    write(to, "relay", name, relay(7, [(16, b"")] + [(7, data[at : at + 255]) for at in range(0, len(data), 255)]))
                else:
                    statuses(to, name, data)
            else:
                write(to, "spdy_frame", f"{name}-{side}", bytes([5]) + data)
                blocks(to, f"{name}-{side}", data)
                if side == "down":
                    # Recorded answers of a server are an upstream's.
                    raw = [(25, data[at : at + 255]) for at in range(0, len(data), 255)]
                    write(to, "relay", name, relay(7 | 0x10, raw))


def blocks(to, name, data):
    """The header blocks of a connection; only the first can be inflated alone."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 5 : at + 8], "big")
        kind = int.from_bytes(data[at : at + 4], "big")
        if kind in (0x80030001, 0x80030002):
            fixed, flags = (10, 1) if kind == 0x80030001 else (4, 3)
            write(to, "spdy_header_block", f"{name}-{at}", bytes([flags, 5]) + data[at + 8 + fixed : at + 8 + size])
        at += 8 + size


def statuses(to, name, data):
    start = data.find(b'{"metadata"')
    if start >= 0:
        write(to, "status_json", name, data[start : data.rfind(b"}") + 1])


def relay(flags, steps):
    """Steps are (what, bytes) or (what, bytes, size)."""
    out = bytes([flags, 5])
    for what, data, *size in steps:
        out += bytes([what, size[0] if size else len(data)]) + data
    return out


def block(*pairs):
    def string(text):
        return len(text).to_bytes(4, "big") + text.encode()

    return len(pairs).to_bytes(4, "big") + b"".join(string(part) for pair in pairs for part in pair)


def control(kind, body, flags=0):
    return (0x80030000 | kind).to_bytes(4, "big") + bytes([flags]) + len(body).to_bytes(3, "big") + body


def data_frame(stream, body, fin=0):
    return stream.to_bytes(4, "big") + bytes([fin]) + len(body).to_bytes(3, "big") + body


def message(first, payload, mask=b"\x01\x02\x03\x04"):
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return bytes([first]) + size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def handmade(to):
    one, five = (1).to_bytes(4, "big"), (5).to_bytes(4, "big")
    frames = {
        "ping": control(6, one),
        "rst": control(3, one + five),
        "goaway": control(7, one + bytes(4)),
        "settings": control(4, one + bytes([0, 0, 0, 4, 0, 1, 0, 0])),
        "window-update": control(9, one + five),
        "data-twice-and-fin": data_frame(1, b"abc") + data_frame(1, b"de") + data_frame(1, b"", 1),
        "headers-of-nothing": control(8, one),
    }
    for name, frame in frames.items():
        write(to, "spdy_frame", name, bytes([5]) + frame)

    write(to, "spdy_header_block", "kubectl", b"\0\5" + block(("streamtype", "error")))
    write(to, "spdy_header_block", "port-forward", b"\2\5" + block(("port", "80"), ("requestid", "0"), ("streamtype", "data")))
    write(to, "spdy_header_block", "forbidden", b"\0\5" + block(("host", "a"), ("x", "b\0c")))

    def ops(*steps):
        return b"".join(bytes(step) for step in steps)

    client, server = 0, 0x80
    opened = [(client | 0, 0, 0), (client | 8, 0, 0), (server | 1, 0, 0), (server | 8, 0, 0)]
    write(to, "spdy_session", "open-and-close", ops(*opened, (client | 3, 0, 9), (client | 8, 0, 0), (server | 3, 0, 9), (server | 8, 0, 0)))
    write(to, "spdy_session", "reset", ops(*opened, (client | 2, 0, 3), (server | 4, 0, 5), (client | 8, 0, 0), (server | 8, 0, 0)))
    write(to, "spdy_session", "goaway", ops(*opened, (client | 0, 0, 0), (server | 6, 0, 0), (server | 8, 0, 0), (client | 8, 0, 0)))
    write(to, "spdy_session", "timeouts", ops((client | 0, 0, 0), (10, 0, 200), (12, 0, 0), (12, 0, 0), (12, 0, 0)))
    write(to, "spdy_session", "strangers", ops((server | 13, 1, 0), (server | 13, 3, 0), (server | 0x20 | 13, 3, 1), (server | 1, 0, 0)))

    write(to, "websocket_message", "ping-and-stdin", b"\4\5" + message(0x89, b"p" * 125) + message(0x82, b"\0" + b"x" * 300))
    write(to, "websocket_message", "fragments", b"\4\5" + message(2, b"\0ab") + message(0x89, b"?") + message(0, b"cd") + message(0x80, b""))
    write(to, "websocket_message", "close-signal", b"\4\5" + message(0x82, b"\xff\0") + message(0x88, b"\x03\xe8bye"))
    text = b"0" + base64.b64encode(b"hello, world")
    write(to, "websocket_message", "base64", b"\2\5" + message(0x81, text) + message(0x81, b"0QQ=="))
    write(to, "websocket_message", "of-a-server", b"\1\5" + b"\x82\x03\x01ok" + b"\x8a\x00" + b"\x88\x02\x03\xe8")

    statuses = {
        "success": '{"metadata":{},"status":"Success"}',
        "exit-3": '{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3",'
        '"reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}',
        "internal": '{"metadata":{},"status":"Failure","message":"Internal error occurred: no","reason":"InternalError",'
        '"details":{"causes":[{"message":"no"}]},"code":500}',
        "torn": '{"metadata":{},"status":"Succ',
    }
    for name, status in statuses.items():
        write(to, "status_json", name, status.encode())

    heads = {
        "websocket": "GET /api/v1/namespaces/default/pods/demo/exec?command=sh&command=-c&command=a%25b&container=shell"
        "&stdin=true&stdout=true HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n",
        "spdy": "POST /exec/default/demo/shell?command=date&output=1&error=1 HTTP/1.1\r\nConnection: keep-alive, upgrade\r\n"
        "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: channel.k8s.io\r\n",
        "attach": "GET /attach/default/gone/uid/shell?input=1&output=1&tty=1 HTTP/1.1\r\nUpgrade: websocket\r\n",
        "port-forward": "POST /api/v1/namespaces/default/pods/demo/portforward?ports=80&ports=81,82 HTTP/1.1\r\n"
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
        "escaped": "GET /api/v1/namespaces/a%20b/pods/%C3%A9/exec?container=c%3Fd&command=%FF&command=%25&stdout HTTP/1.1\r\n",
        "method": "DELETE /api/v1/namespaces/default/pods/demo/attach HTTP/1.1\r\n",
    }
    for name, head in heads.items():
        write(to, "upgrade_headers", name, head.encode())

    success, exit_3 = (27 | 32, b"", 0), (27 | 32, b"", 1)
    fin = lambda stream: (19 | stream // 2 << 5, b"")  # noqa: E731
    out = (18 | 2 << 5, b"hello")
    write(to, "relay", "success-v4", relay(7 | 0x10, [(16, b""), out, fin(5), fin(7), success, (6, b"")]))
    write(to, "relay", "exit-3-v5", relay(7, [(16, b""), out, fin(5), fin(7), exit_3, (6, b"")]))
    write(to, "relay", "success-v1", relay(7 | 0x40, [(16, b""), out, fin(5), fin(7), fin(1), (8, b"")]))
    write(to, "relay", "fin-in-a-reply", relay(7 | 0x30, [(16, b""), out, fin(5), fin(7), (17, b"", 1), (26, b"")]))
    write(to, "relay", "stdin", relay(7, [(16, b""), (0, b"line\n"), (1, b"", 9), (2, b""), (5, b"?"), (6, b"")]))
    write(to, "relay", "lost", relay(7 | 0x10, [(16, b""), (20 | 2 << 5, b"", 200), (26, b"")]))
    write(to, "relay", "goaway", relay(7 | 0x10, [(16, b""), out, success, (22, b"", 0), (26, b"")]))
    write(to, "relay", "tty", relay(11, [(16, b""), (0 | 4 << 5, b'{"Width":80,"Height":24}'), out, (30, b"", 70)]))

    tunnel = lambda steps: relay(5, steps)[1:]  # noqa: E731
    pieces = [(0, b"\x80\x06\0\x01"), (0, b"\0\0\0\4"), (0, b"\0\0\0\1"), (0, b"")]
    write(to, "tunnel", "ping-as-kubectl-writes-it", tunnel([*pieces, (16, b"pong"), (5, b""), (18, b"")]))
    write(to, "tunnel", "fragments", tunnel([(2, b"ab"), (4, b"?"), (3, b"cd"), (3, b""), (3 | 32, b"ef"), (5, b"")]))
    write(to, "tunnel", "upstream-ends", tunnel([(0, b"a"), (17, b"", 200), (18, b"")]))
    write(to, "tunnel", "large", tunnel([(1, b"", 200), (1, b"", 200), (5, b""), (17, b"", 20)]))
    write(to, "tunnel", "text", tunnel([(0, b"a"), (6, b"text"), (8, b"")]))
    write(to, "tunnel", "silent", tunnel([(30, b"", 70), (0, b"late")]))


if sys.argv[1] == "--handmade":
    handmade(pathlib.Path(sys.argv[2]))
else:
    wire(pathlib.Path(sys.argv[1]))

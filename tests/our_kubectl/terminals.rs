//! The terminal: raw while a session has it, and afterwards as it was, whatever ended the session.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
};

use rustix::process::Signal;
use tokio::{io::AsyncReadExt as _, process::Command};
use tokio_util::sync::CancellationToken;

use super::{
    kubectl::{
        detach::{self, Keyboard},
        terminal::Raw,
    },
    support::{
        Outcome,
        kubectl::{Run, ours},
        lab::{Lab, Topology},
        skip,
        terminal::Terminal,
    },
};
use crate::ensure;

const PANICS: &str = "terminals::helper_that_panics_while_the_terminal_is_raw";

/// A terminal with `kubectl ARGS` on it, and how it was set before.
fn start(run: &Run<'_>, args: &[&str]) -> Outcome<(Terminal, String)> {
    let mut before = String::new();
    let terminal = Terminal::start((24, 80), |pty| {
        before = format!("{:?}", rustix::termios::tcgetattr(pty).map_err(|error| error.to_string())?);
        run.command_on(pty, args)
    })?;
    Ok((terminal, before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_editor_has_the_terminal_its_size_and_its_keys() -> Outcome {
    if !Path::new("/bin/busybox").exists() {
        skip("there is no /bin/busybox, whose vi is edited with");
        return Ok(());
    }
    let lab = Lab::start(Topology::TwoProcesses).await?;
    for websocket in [true, false] {
        let client = ours(websocket);
        let run = Run { lab: &lab, client: &client };
        let file = lab.scratch.path().join(format!("edited-{websocket}"));
        let name = file.to_str().expect("paths are text");
        let args = ["exec", "-it", "demo", "-c", "shell", "--", "/bin/busybox", "vi", name];
        let (mut terminal, before) = start(&run, &args)?;
        // The status line is the last one.
        terminal.shows("\x1b[24;1H").await?;
        ensure!(terminal.settings()? != before, "the terminal is not raw");
        terminal.resize((50, 100))?;
        terminal.shows("\x1b[50;1H").await?;
        terminal.keys("ityped by hand")?;
        terminal.shows("typed by hand").await?;
        terminal.keys("\x1b")?;
        terminal.shows(&format!("- {name} [Modified]")).await?;
        terminal.keys(":wq\r")?;
        let code = terminal.ends().await?;
        ensure!(code == 0, "exit code {code}: {}", terminal.screen());
        let typed = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        ensure!(typed == "typed by hand\n", "{typed:?}");
        ensure!(terminal.settings()? == before, "the terminal is not as it was");
    }
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_is_the_commands_and_an_exit_code_comes_on_a_restored_terminal() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let client = ours(true);
    let run = Run { lab: &lab, client: &client };
    let script = "trap 'echo caught; exit 5' INT; echo waiting; while :; do sleep 0.05; done";
    let (mut terminal, before) = start(&run, &["exec", "-it", "demo", "-c", "shell", "--", "sh", "-c", script])?;
    terminal.shows("waiting").await?;
    ensure!(terminal.settings()? != before, "the terminal is not raw");
    terminal.keys("\x03")?;
    terminal.shows("caught").await?;
    let code = terminal.ends().await?;
    ensure!(code == 5, "exit code {code}");
    // With the carriage return that a terminal adds when it is not raw.
    terminal.shows("command terminated with exit code 5\r\n").await?;
    ensure!(terminal.settings()? == before, "the terminal is not as it was");
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_and_a_lost_server_leave_the_terminal_as_it_was() -> Outcome {
    let mut lab = Lab::start(Topology::AllInOne).await?;
    let client = ours(true);
    let args = ["exec", "-it", "demo", "-c", "shell", "--", "sh", "-c", "echo waiting; exec sleep 60"];
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let (mut terminal, before) = start(&Run { lab: &lab, client: &client }, &args)?;
        terminal.shows("waiting").await?;
        ensure!(terminal.settings()? != before, "the terminal is not raw");
        terminal.signal(signal);
        let code = terminal.ends().await?;
        ensure!(code == 1, "exit code {code} after {signal:?}");
        ensure!(terminal.settings()? == before, "the terminal is not as it was after {signal:?}");
    }
    let (mut terminal, before) = start(&Run { lab: &lab, client: &client }, &args)?;
    terminal.shows("waiting").await?;
    lab.apiserver.kill().await?;
    let code = terminal.ends().await?;
    ensure!(code == 1, "exit code {code} after the server was lost");
    terminal.shows("error: the session broke").await?;
    ensure!(terminal.settings()? == before, "the terminal is not as it was after the server was lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_leave_an_attached_terminal_and_what_runs_there_goes_on() -> Outcome {
    let lab = Lab::start(Topology::TwoProcesses).await?;
    let client = ours(true);
    let run = Run { lab: &lab, client: &client };
    for (flags, kept, dumped, keys) in [
        (&["--detach-keys=ctrl-x,x"][..], "ctrl\x18y", "   c   t   r   l 030   y", "\x18x"),
        (&["--detach-keys=~,."], "~~,", "   ~   ~   ,", "~."),
        (&[], "ctrl\x10x", "   c   t   r   l 020   x", "\x10\x10\x11"),
    ] {
        let (mut terminal, before) = start(&run, &[&["attach", "-it", "demo", "-c", "shell"], flags].concat())?;
        terminal.shows("try pressing enter").await?;
        // Their beginning alone is for the shell, like all else.
        terminal.types(&format!("printf %s '{kept}' | od -An -c"))?;
        terminal.shows(dumped).await?;
        terminal.keys(keys)?;
        let code = terminal.ends().await?;
        ensure!(code == 0, "exit code {code}: {}", terminal.screen());
        ensure!(terminal.settings()? == before, "the terminal is not as it was");
    }
    let (mut terminal, _) = start(&run, &["attach", "-it", "demo", "--detach-keys=nope"])?;
    let code = terminal.ends().await?;
    ensure!(code == 1, "exit code {code}: {}", terminal.screen());
    terminal.shows("error: could not bind detach keys: Unknown character: 'nope'\r\n").await?;
    lab.stop().await
}

#[tokio::test]
async fn what_was_held_back_as_a_beginning_of_the_keys_is_not_lost() -> Outcome {
    let keys = detach::sequence(detach::DEFAULT)?;
    for (typed, wanted, leaves) in [
        (&b"a\x10"[..], &b"a\x10"[..], false),
        (b"\x11\x10b\x11", b"\x11\x10b\x11", false),
        (b"\x10\x10\x11b", b"\x10", true),
        (b"a\x10\x11", b"a", true),
    ] {
        let left = CancellationToken::new();
        let (mut read, mut keyboard) = (Vec::new(), Keyboard::new(typed, keys.clone(), left.clone()));
        keyboard.read_to_end(&mut read).await.map_err(|error| error.to_string())?;
        ensure!(read == wanted && left.is_cancelled() == leaves, "{typed:?}: {read:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_panic_leaves_the_terminal_as_it_was_and_is_told_on_it() -> Outcome {
    let mut before = String::new();
    let mut terminal = Terminal::start((24, 80), |pty: &OwnedFd| {
        before = format!("{:?}", rustix::termios::tcgetattr(pty).map_err(|error| error.to_string())?);
        let stdio = || pty.try_clone().map(Stdio::from).map_err(|error| error.to_string());
        let mut command = Command::new(env::current_exe().map_err(|error| error.to_string())?);
        command.args(["--exact", PANICS, "--ignored", "--nocapture"]);
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).kill_on_drop(true);
        Ok(command)
    })?;
    terminal.shows("it is raw").await?;
    ensure!(terminal.settings()? != before, "the terminal is not raw");
    terminal.keys("x")?;
    let code = terminal.ends().await?;
    ensure!(code == 101, "exit code {code}: {}", terminal.screen());
    terminal.shows("on purpose\r\n").await?;
    ensure!(terminal.settings()? == before, "the terminal is not as it was");
    Ok(())
}

#[test]
#[ignore = "no test of its own: it is run on a terminal by the one above"]
fn helper_that_panics_while_the_terminal_is_raw() {
    let raw = Raw::enter().expect("stdin is a terminal");
    std::io::stdout().write_all(b"it is raw").and_then(|()| std::io::stdout().flush()).expect("written");
    std::io::stdin().read_exact(&mut [0]).expect("a key");
    // A guard that is never dropped: the hook alone must do it.
    std::mem::forget(raw);
    panic!("on purpose");
}

//! The end of the process, without the exit handlers of libraries. This file has `unsafe`: `_exit(2)`.

use std::io::{self, Write as _};

use nix::libc;

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It did what it was asked for: 0.
    Success,
    /// It did not, or `check` found what has to be fixed: 1.
    Failure,
}

/// Ends the process. What was written to standard output is flushed.
///
/// `exit(3)` would run the exit handlers of libraries while threads that have called libvirt still run or end; a call of libvirt may
/// hang for ever. libvirt loads OpenSSL, whose handler and an ending thread free the same memory (`OPENSSL_cleanup(3)`;
/// `init_thread_deregister` in OpenSSL's crypto/initthread.c takes no lock then).
pub fn end_process(status: Status) -> ! {
    // A reader that has closed the pipe gets no more.
    let _ = io::stdout().flush();
    let status = match status {
        Status::Success => libc::EXIT_SUCCESS,
        Status::Failure => libc::EXIT_FAILURE,
    };
    // SAFETY: `_exit` has no precondition: it takes any status, runs no code of this process, and does not return.
    #[expect(unsafe_code, reason = "no crate in use has a safe function for it")]
    unsafe {
        libc::_exit(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process::Command};

    const INSIDE: &str = "KVMETER_TEST_END_PROCESS";

    extern "C" fn handler() {
        println!("an exit handler ran");
    }

    #[test]
    fn exit_handlers_do_not_run_and_output_is_flushed() {
        if env::var_os(INSIDE).is_some() {
            // SAFETY: `handler` has the type that atexit(3) takes, and lives as long as the process.
            #[expect(unsafe_code, reason = "the standard library has no exit handlers")]
            let registered = unsafe { libc::atexit(handler) };
            assert_eq!(registered, 0);
            let mut out = io::stdout();
            write!(out, "no line ends here").unwrap();
            end_process(Status::Failure);
        }
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "exit::tests::exit_handlers_do_not_run_and_output_is_flushed",
            ])
            .env(INSIDE, "")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.ends_with("no line ends here"), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
}

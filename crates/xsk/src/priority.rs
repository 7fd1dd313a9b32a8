//! How much of its core a thread gets beside others.
//!
//! Knows one number of the scheduler. Called by workers for themselves. Source: setpriority(2), sched(7).

use std::io;

use crate::sys;

/// What a thread asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As much as any other.
    Usual,
    /// Most of it: of two threads that want the core, the other gets about one part in ten. Not more, for threads of the kernel that are bound
    /// to a core have to get on, too.
    Most,
}

/// Sets it for the calling thread. **Errors:** [`Priority::Most`] takes `CAP_SYS_NICE`, or a limit that allows it (`LimitNICE=-10`).
pub fn set(priority: Priority) -> io::Result<()> {
    sys::set_nice(match priority {
        Priority::Usual => 0,
        Priority::Most => -10,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_more_than_others_where_it_may_and_as_much_again() {
        std::thread::spawn(|| match set(Priority::Most) {
            Ok(()) => {
                let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
                // The command's name, which may have spaces, ends with a parenthesis; then nice is the 17th field (proc_pid_stat(5): 19th).
                let nice = |stat: &str| stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().to_owned();
                assert_eq!(nice(&stat), "-10");
                set(Priority::Usual).unwrap();
                assert_eq!(nice(&std::fs::read_to_string("/proc/thread-self/stat").unwrap()), "0");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}"),
        })
        .join()
        .unwrap();
    }
}

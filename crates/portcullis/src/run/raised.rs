//! A descriptor that becomes readable when the control plane is wanted, among others that it waits for.
//!
//! Knows descriptors, not what they say. Used by `workers` and `driving`, each within one future over all of its descriptors: [`until`].

use std::future::poll_fn;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits until `look` finds what it looks for. It asks descriptors by [`Raised::was`], and looks again when one of them is raised.
pub(super) async fn until(look: impl Fn(&mut Context<'_>) -> bool) {
    poll_fn(|context| if look(context) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// One such descriptor.
#[derive(Debug)]
pub(super) struct Raised(AsyncFd<OwnedFd>);

impl Raised {
    /// Watches a duplicate of `descriptor` from now on. **Errors:** no descriptor is left. **Panics** outside of the tokio runtime.
    #[expect(deprecated, reason = "its successor is unsafe for types whose descriptor may change, which an owned one does not")]
    pub(super) fn watch(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        AsyncFd::with_interest(descriptor.try_clone_to_owned()?, Interest::READABLE).map(Self)
    }

    /// Whether it was raised since this was asked last. If not, `context` is woken when it is.
    pub(super) fn was(&self, context: &mut Context<'_>) -> bool {
        let mut raised = false;
        while let Poll::Ready(Ok(mut readable)) = self.0.poll_read_ready(context) {
            readable.clear_ready();
            raised = true;
        }
        raised
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use nix::sys::eventfd::EventFd;
    use tokio::time::timeout;

    use super::*;

    async fn is_raised(raised: &Raised) -> bool {
        timeout(Duration::from_millis(100), until(|context| raised.was(context))).await.is_ok()
    }

    #[tokio::test]
    async fn each_raising_is_told_once_whether_it_came_before_or_while_it_was_waited_for() {
        let descriptor = EventFd::new().expect("a descriptor");
        let raised = Raised::watch(descriptor.as_fd()).expect("a descriptor");
        assert!(!is_raised(&raised).await);
        for _ in 0..2 {
            descriptor.write(1).expect("room for one more");
            assert!(is_raised(&raised).await);
            assert!(!is_raised(&raised).await, "it stays readable, but was told");
        }
        let raise_later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            descriptor.write(1).expect("room for one more");
        };
        let (raised, ()) = tokio::join!(is_raised(&raised), raise_later);
        assert!(raised);
    }
}

//! The control socket in the file system: made with the right permissions, and never taken from a running gateway.
//!
//! Knows paths and sockets. Called by `run.rs` before privileges are dropped. Invariants: the socket appears under its name with its
//! final permissions; only a socket that nobody listens to is replaced; what is removed at the end is what was made.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where the socket is unless told otherwise.
pub(crate) const DEFAULT_PATH: &str = "/run/portcullis/control.sock";

/// Owner and group may ask; the group is the directory's affair (a service's `RuntimeDirectory`, or chgrp).
const MODE: u32 = 0o660;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A gateway answers there.
    #[error("a gateway is running already: it answers at {0}; stop it first, or give this one another socket")]
    Running(PathBuf),
    /// Something else is in the way.
    #[error("{0} exists and is not a socket; remove it, or give another path")]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("cannot {action} {path}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

impl SocketError {
    fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, path: path.to_owned(), source }
    }
}

/// A listening socket with its file. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to know it again.
    identity: (u64, u64),
}

/// A listening socket at `path`; its directory is made where it is missing. **Errors:** see [`SocketError`]; nothing is left behind
/// but the directory.
pub(crate) fn bind(path: &Path) -> Result<Socket, SocketError> {
    make_directory(path)?;
    check_free(path)?;
    // Under another name first: the mode is set before anybody can find it. Renaming replaces a dead socket in one step.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let listener = UnixListener::bind(&temporary).map_err(SocketError::system("listen at", &temporary))?;
    let ready = fs::set_permissions(&temporary, fs::Permissions::from_mode(MODE))
        .map_err(SocketError::system("set the permissions of", &temporary))
        .and_then(|()| identity(&temporary))
        .and_then(|identity| fs::rename(&temporary, path).map(|()| identity).map_err(SocketError::system("create", path)));
    match ready {
        Ok(identity) => Ok(Socket { listener, path: path.to_owned(), identity }),
        Err(error) => {
            // The first error is the one to tell.
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn make_directory(path: &Path) -> Result<(), SocketError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) else { return Ok(()) };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(SocketError::system("create the directory", directory))
}

/// That nothing is at `path`, or a socket that nobody listens to.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::system("look at", path)(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Running(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // The other one ended just now and took its socket along.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(SocketError::system("connect to", path)(error)),
    }
}

fn identity(path: &Path) -> Result<(u64, u64), SocketError> {
    let metadata = fs::symlink_metadata(path).map_err(SocketError::system("look at", path))?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Socket {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, for the runtime that this is called in. The file stays for as long as the result lives.
    pub(super) fn listener(self) -> io::Result<Listening> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(Listening { listener: tokio::net::UnixListener::from_std(listener)?, _socket: self })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Nobody to tell, and the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that a server listens to.
pub(super) struct Listening {
    listener: tokio::net::UnixListener,
    _socket: Socket,
}

impl axum::serve::Listener for Listening {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        axum::serve::Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test alone, gone afterwards.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("portcullis-socket-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_has_its_directory_made_its_mode_set_and_its_file_removed() {
        let directory = Directory::new("made");
        let path = directory.0.join("a/b/control.sock");
        let socket = bind(&path).expect("a socket");
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert!(UnixStream::connect(&path).is_ok(), "it listens");
        assert_eq!(fs::read_dir(directory.0.join("a/b")).expect("a directory").count(), 1, "no temporary name stays");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_refused_and_a_dead_one_replaced() {
        let directory = Directory::new("live");
        let path = directory.0.join("control.sock");
        let live = UnixListener::bind(&path).expect("a socket");
        assert!(matches!(bind(&path), Err(SocketError::Running(_))));
        drop(live);
        assert!(path.exists(), "a dead process leaves its file");
        let socket = bind(&path).expect("a dead socket is no obstacle");
        assert!(UnixStream::connect(socket.path()).is_ok());
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = Directory::new("file");
        let path = directory.0.join("control.sock");
        fs::write(&path, "precious").expect("a file");
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    }

    #[test]
    fn a_socket_that_was_replaced_is_not_removed() {
        let directory = Directory::new("replaced");
        let path = directory.0.join("control.sock");
        let first = bind(&path).expect("a socket");
        fs::remove_file(&path).expect("somebody removes it");
        let second = bind(&path).expect("another one");
        drop(first);
        assert!(UnixStream::connect(second.path()).is_ok());
    }
}

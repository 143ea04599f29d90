//! The file of the status socket: made, replaced when a killed run has left it, removed at the end.
//!
//! Used by the parent module; all of it may take as long as the disk, so it is done beside the loop.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::oneshot;

/// The socket's name in the backlog's folder.
pub const SOCKET: &str = "status.sock";

/// Listens at `path`, without blocking; the file goes with the second value.
pub(super) async fn bind(
    path: PathBuf,
) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    let (listener, file) = beside(move || SocketFile::bind(path)).await??;
    listener.set_nonblocking(true)?;
    Ok((listener, file))
}

/// Work for the disk, which may take long, on a thread of its own.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, answer) = oneshot::channel();
    thread::Builder::new()
        .name("socket".into())
        .spawn(move || drop(sender.send(work())))?;
    answer.await.map_err(io::Error::other)
}

/// The socket's file. It is removed when nobody listens any more, unless it is another one by then.
pub(super) struct SocketFile {
    path: PathBuf,
    device_and_inode: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens at `path`. A socket that a killed run has left there is replaced; one at which somebody
    /// listens is not, nor is anything that is no socket.
    fn bind(path: PathBuf) -> io::Result<(std::os::unix::net::UnixListener, Self)> {
        // The folder is the backlog's; its thread may not have made it yet.
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(io::Error::other("it is no socket; move it away"));
            }
            if is_live(&path) {
                return Err(io::Error::other(
                    "another nightlight listens there; give this one a backlog.path of its own",
                ));
            }
            fs::remove_file(&path)?;
        }
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        let device_and_inode = identity(&path);
        let file = Self {
            path,
            device_and_inode,
        };
        Ok((listener, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == self.device_and_inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = path.symlink_metadata().ok()?;
    Some((file.dev(), file.ino()))
}

/// Whether somebody listens at this socket. Does not wait: one whose queue is full is live too.
fn is_live(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    });
    connected != Err(Errno::CONNREFUSED)
}

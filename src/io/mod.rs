//! draft: the shell
pub mod backlog;

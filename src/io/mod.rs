//! draft: the shell

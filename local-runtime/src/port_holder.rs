//! Who listens on a port.

use std::fmt;

/// The process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortHolder {
    pub(crate) pid: u32,
    pub(crate) program: String,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.program, self.pid)
    }
}

/// Looks in `/proc`; `None` where there is none, or where the process is another user's. Reads a few thousand links on a
/// busy machine, so not for an async thread.
pub(crate) fn find(port: u16) -> Option<PortHolder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<String> =
        tables.iter().flat_map(|table| listening(table, port)).map(|inode| format!("socket:[{inode}]")).collect();
    for process in std::fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Unreadable for processes of others, and gone for those that ended meanwhile.
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let mut targets = files.filter_map(Result::ok).filter_map(|file| std::fs::read_link(file.path()).ok());
        if targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str())) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name = name.trim();
            let program = if name.is_empty() { "a program" } else { name };
            return Some(PortHolder { pid, program: program.to_owned() });
        }
    }
    None
}

/// Inodes of the sockets that listen on the port, out of a table of the kernel's.
fn listening(table: &str, port: u16) -> Vec<&str> {
    const LISTEN: &str = "0A";
    let inode = |line: &'_ str| -> Option<usize> {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let (_, hex) = local.rsplit_once(':')?;
        let listens = fields.nth(1)? == LISTEN && u16::from_str_radix(hex, 16).ok()? == port;
        listens.then_some(9)
    };
    table.lines().filter_map(|line| line.split_ascii_whitespace().nth(inode(line)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CA9 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1CA9 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 100 0 0 10 0
   2: 0100007F:1CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0 100 0 0 10 0";
        assert_eq!(listening(table, 7337), ["4711"]);
    }

    #[test]
    fn the_holder_of_a_port_of_this_process_is_this_process() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let holder = find(listener.local_addr().unwrap().port());
        assert_eq!(holder.map(|holder| holder.pid), Some(std::process::id()));
    }
}

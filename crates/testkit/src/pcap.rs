//! Writes packets as classic pcap files (`LINKTYPE_ETHERNET`), so that a failing packet test can be opened in any reader.
//!
//! Knows the file format and where failures go: `target/failures/<test>.pcap`. Called by tests that have failed already, hence it
//! reports trouble instead of panicking. Source: draft-ietf-opsawg-pcap, section 4 and 5. Tests: below.

use std::io::{self, Write};
use std::path::PathBuf;

/// One packet of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When. **Units:** milliseconds.
    pub milliseconds: u64,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// A pcap file in the making, over any writer.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file's header: little endian, microseconds, snap length 262,144, `LINKTYPE_ETHERNET`.
    ///
    /// **Errors:** the writer's.
    pub fn new(mut out: W) -> io::Result<Self> {
        for (value, len) in [(0xA1B2_C3D4_u32, 4), (2, 2), (4, 2), (0, 4), (0, 4), (262_144, 4), (1, 4)] {
            out.write_all(&value.to_le_bytes()[..len])?;
        }
        Ok(Self { out })
    }

    /// Appends a packet.
    ///
    /// **Errors:** the writer's.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let (seconds, microseconds) = (record.milliseconds / 1000, record.milliseconds % 1000 * 1000);
        for value in [seconds as u32, microseconds as u32, record.bytes.len() as u32, record.bytes.len() as u32] {
            self.out.write_all(&value.to_le_bytes())?;
        }
        self.out.write_all(&record.bytes)
    }
}

/// The directory of failures: `target/failures` of the workspace.
pub fn failures() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")), PathBuf::from)
        .join("failures")
}

/// Writes the packets of a failed test to `target/failures/<test>.pcap`. Gives the path, or why there is none, in one sentence for
/// the test's message.
pub fn write_failure(test: &str, records: &[Record]) -> String {
    let path = failures().join(format!("{}.pcap", test.replace(|c: char| !c.is_alphanumeric() && c != '_', "_")));
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(failures())?;
        let mut writer = PcapWriter::new(io::BufWriter::new(std::fs::File::create(&path)?))?;
        records.iter().try_for_each(|record| writer.write(record))?;
        writer.out.flush()
    };
    match write() {
        Ok(()) => format!("{} packets are in {}", records.len(), path.display()),
        Err(error) => format!("no pcap: {} could not be written: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_header_and_its_records() {
        let mut bytes = Vec::new();
        let mut writer = PcapWriter::new(&mut bytes).expect("memory takes it");
        writer.write(&Record { milliseconds: 1_234, bytes: vec![1, 2, 3] }).expect("memory takes it");
        assert_eq!(bytes.len(), 24 + 16 + 3);
        assert_eq!(bytes[..8], [0xD4, 0xC3, 0xB2, 0xA1, 2, 0, 4, 0]);
        assert_eq!(bytes[20..24], [1, 0, 0, 0], "`LINKTYPE_ETHERNET`");
        assert_eq!(bytes[24..32], [1, 0, 0, 0, 0x10, 0x92, 3, 0], "1 s and 234,000 us");
        assert_eq!(bytes[32..], [3, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3]);
    }

    #[test]
    fn a_failure_is_written_under_the_tests_name() {
        let said = write_failure("pcap::self test", &[Record { milliseconds: 0, bytes: vec![0; 60] }]);
        let path = failures().join("pcap__self_test.pcap");
        assert!(said.contains("1 packets"), "{said}");
        assert_eq!(std::fs::metadata(&path).expect("the file is there").len(), 24 + 16 + 60);
        std::fs::remove_file(path).expect("and goes");
    }
}

//! The ioctls of a network device: `SIOCGIF*` and `SIOCETHTOOL`, as plain numbers and names.
//!
//! Knows linux/ethtool.h by offsets. Called by [`super`]. Invariant: every buffer handed to the kernel is as long as the request says.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const GDRVINFO: u32 = 0x03;
const GRINGPARAM: u32 = 0x10;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;
/// `ETH_SS_FEATURES`.
const SET_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const NAME_LEN: usize = 32;
/// Feature bits in a word of the request.
const WORD: usize = 32;

/// The queues of a device (`ethtool -l`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Queues that only receive.
    pub rx: u32,
    /// Queues that only transmit.
    pub tx: u32,
    /// Queues that do both.
    pub combined: u32,
    /// The most queues that do both.
    pub max_combined: u32,
}

/// The descriptor rings of a device's queues (`ethtool -g`). The fill ring has to be as large as `rx` at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Receive descriptors of a queue.
    pub rx: u32,
    /// Transmit descriptors of a queue.
    pub tx: u32,
    /// The most receive descriptors.
    pub max_rx: u32,
    /// The most transmit descriptors.
    pub max_tx: u32,
}

/// An offload of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Feature {
    pub(super) name: String,
    pub(super) active: bool,
    pub(super) changeable: bool,
}

/// A device's name with a socket to ask about it.
#[derive(Debug)]
pub(super) struct Handle {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Handle {
    pub(super) fn open(device: &str) -> io::Result<Self> {
        if device.is_empty() || device.len() >= libc::IFNAMSIZ || device.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut name = [0; libc::IFNAMSIZ];
        for (slot, byte) in name.iter_mut().zip(device.bytes()) {
            *slot = byte.cast_signed();
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, name })
    }

    pub(super) fn ifindex(&self) -> io::Result<u32> {
        let answer = self.ask(libc::SIOCGIFINDEX)?;
        // SAFETY: SIOCGIFINDEX filled this member.
        Ok(unsafe { answer.ifr_ifru.ifru_ifindex }.cast_unsigned())
    }

    pub(super) fn mtu(&self) -> io::Result<u32> {
        let answer = self.ask(libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU filled this member.
        Ok(unsafe { answer.ifr_ifru.ifru_mtu }.cast_unsigned())
    }

    pub(super) fn is_up(&self) -> io::Result<bool> {
        let answer = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS filled this member.
        Ok(i32::from(unsafe { answer.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0)
    }

    pub(super) fn mac(&self) -> io::Result<[u8; 6]> {
        let answer = self.ask(libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR filled this member.
        let address = unsafe { answer.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(std::array::from_fn(|position| address[position].cast_unsigned()))
    }

    pub(super) fn driver(&self) -> io::Result<String> {
        // struct ethtool_drvinfo: cmd, then 32 bytes of driver name; 196 bytes in all.
        let mut request = [0_u32; 49];
        request[0] = GDRVINFO;
        self.ethtool(&mut request)?;
        let bytes: Vec<u8> = request[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn channels(&self) -> io::Result<Channels> {
        // struct ethtool_channels: cmd, max rx, tx, other, combined, then the present ones in the same order.
        let mut request = [0_u32; 9];
        request[0] = GCHANNELS;
        self.ethtool(&mut request)?;
        Ok(Channels { rx: request[5], tx: request[6], combined: request[8], max_combined: request[4] })
    }

    pub(super) fn rings(&self) -> io::Result<RingSizes> {
        // struct ethtool_ringparam: cmd, max rx, mini, jumbo, tx, then the present ones in the same order.
        let mut request = [0_u32; 9];
        request[0] = GRINGPARAM;
        self.ethtool(&mut request)?;
        Ok(RingSizes { rx: request[5], tx: request[8], max_rx: request[1], max_tx: request[4] })
    }

    /// All offloads of the device.
    pub(super) fn features(&self) -> io::Result<Vec<Feature>> {
        let names = self.feature_names()?;
        let words = names.len().div_ceil(WORD);
        // struct ethtool_gfeatures: cmd, size in words, then for each word: available, requested, active, never_changed.
        let mut request = vec![0_u32; 2 + words * 4];
        request[0] = GFEATURES;
        request[1] = words as u32;
        self.ethtool(&mut request)?;
        let bit = |position: usize, column: usize| request[2 + position / WORD * 4 + column] >> (position % WORD) & 1 == 1;
        let described = names.into_iter().enumerate().filter(|(_, name)| !name.is_empty());
        Ok(described
            .map(|(position, name)| Feature { name, active: bit(position, 2), changeable: bit(position, 0) && !bit(position, 3) })
            .collect())
    }

    /// Switches an offload, and checks that it is switched.
    pub(super) fn set_feature(&self, feature: &str, on: bool) -> io::Result<()> {
        let names = self.feature_names()?;
        let missing = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let position = names.iter().position(|name| name == feature).ok_or_else(missing)?;
        // struct ethtool_sfeatures: cmd, size in words, then for each word: valid, requested.
        let words = names.len().div_ceil(WORD);
        let mut request = vec![0_u32; 2 + words * 2];
        request[0] = SFEATURES;
        request[1] = words as u32;
        request[2 + position / WORD * 2] = 1 << (position % WORD);
        request[3 + position / WORD * 2] = u32::from(on) << (position % WORD);
        self.ethtool(&mut request)?;
        let now = self.features()?.into_iter().find(|state| state.name == feature);
        if now.is_some_and(|state| state.active == on) { Ok(()) } else { Err(missing()) }
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, mask (64 bits), then one count for each set asked for.
        let mut info = [0_u32; 5];
        info[0] = GSSET_INFO;
        info[2] = 1 << SET_FEATURES;
        self.ethtool(&mut info)?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: cmd, set, count, then the names.
        let mut request = vec![0_u32; 3 + count * NAME_LEN / 4];
        request[0] = GSTRINGS;
        request[1] = SET_FEATURES;
        request[2] = count as u32;
        self.ethtool(&mut request)?;
        let bytes: Vec<u8> = request[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let text = |name: &[u8]| String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
        Ok(bytes.chunks_exact(NAME_LEN).map(text).collect())
    }

    fn ask(&self, request: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut answer = libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } };
        // SAFETY: the requests passed here read and write one struct ifreq.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &raw mut answer) };
        if result == 0 { Ok(answer) } else { Err(io::Error::last_os_error()) }
    }

    /// Runs an ethtool request; `request` begins with the command and is as long as the kernel's struct of it.
    fn ethtool(&self, request: &mut [u32]) -> io::Result<()> {
        let data = request.as_mut_ptr().cast();
        let mut asked = libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
        // SAFETY: the kernel reads and writes as many bytes as the command's struct has, plus the entries that the struct's own count
        // announces; the callers size `request` for both.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut asked) };
        if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

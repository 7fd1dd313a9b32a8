//! The ioctls of a network device: `SIOCGIF*` and `SIOCETHTOOL`, as plain numbers and names.
//!
//! Knows what an answer's words mean. Called by [`super`] and by [`crate::nic`]. Invariant: what the kernel writes lies in a [`Request`].

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::request::{GET_CHANNELS, GET_DRIVER, GET_FEATURES, GET_RINGS, Request, SET_CHANNELS, SET_FEATURES, SET_RINGS};

/// Features in a word of the request.
const WORD: usize = 32;

/// The queues of a device (`ethtool -l`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues that only receive.
    pub rx: u32,
    /// Queues that only transmit.
    pub tx: u32,
    /// Interrupts without a queue.
    pub other: u32,
    /// Queues that do both.
    pub combined: u32,
    /// The most queues that only receive.
    pub max_rx: u32,
    /// The most queues that only transmit.
    pub max_tx: u32,
    /// The most queues that do both.
    pub max_combined: u32,
}

impl Channels {
    /// Queues that receive.
    pub const fn receiving(&self) -> u32 {
        self.combined + self.rx
    }
}

/// The descriptor rings of a device's queues (`ethtool -g`). The fill ring has to be as large as `rx` at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// A feature of a device (`ethtool -k`), by the kernel's name for it, which is not always ethtool's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name, such as `rx-vlan-hw-parse`.
    pub name: String,
    /// Whether it is on.
    pub active: bool,
    /// Whether the driver lets it be switched.
    pub changeable: bool,
}

/// A device's name with a socket to ask about it.
#[derive(Debug)]
pub(crate) struct Handle {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Handle {
    /// **Errors:** ENODEV for what cannot be a name. Whether there is such a device is not asked.
    pub(crate) fn open(device: &str) -> io::Result<Self> {
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

    /// The device's name.
    pub(crate) fn name(&self) -> String {
        let bytes = self.name.iter().map(|byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
        // It was text when it came.
        String::from_utf8(bytes).unwrap_or_default()
    }

    pub(crate) fn ifindex(&self) -> io::Result<u32> {
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
        Ok(self.run(Request::new(GET_DRIVER))?.text(1, 32))
    }

    pub(crate) fn channels(&self) -> io::Result<Channels> {
        let answer = self.run(Request::new(GET_CHANNELS))?;
        let (max_rx, max_tx, max_combined) = (answer.get(1), answer.get(2), answer.get(4));
        let (rx, tx, other, combined) = (answer.get(5), answer.get(6), answer.get(7), answer.get(8));
        Ok(Channels { rx, tx, other, combined, max_rx, max_tx, max_combined })
    }

    /// Sets the present numbers; the maxima are the driver's.
    pub(crate) fn set_channels(&self, channels: &Channels) -> io::Result<()> {
        let mut request = Request::new(SET_CHANNELS);
        let present = [channels.rx, channels.tx, channels.other, channels.combined];
        present.into_iter().zip(5..).for_each(|(count, word)| request.set(word, count));
        self.run(request).map(drop)
    }

    pub(crate) fn rings(&self) -> io::Result<RingSizes> {
        let answer = self.run(Request::new(GET_RINGS))?;
        Ok(RingSizes { rx: answer.get(5), tx: answer.get(8), max_rx: answer.get(1), max_tx: answer.get(4) })
    }

    /// Sets the present sizes; those of mini and jumbo rings stay.
    pub(crate) fn set_rings(&self, rings: &RingSizes) -> io::Result<()> {
        let now = self.run(Request::new(GET_RINGS))?;
        let mut request = Request::new(SET_RINGS);
        let sizes = [rings.rx, now.get(6), now.get(7), rings.tx];
        sizes.into_iter().zip(5..).for_each(|(size, word)| request.set(word, size));
        self.run(request).map(drop)
    }

    /// All features of the device.
    pub(crate) fn features(&self) -> io::Result<Vec<Feature>> {
        let names = self.feature_names()?;
        let answer = self.run(Request::announcing(GET_FEATURES, names.len().div_ceil(WORD)))?;
        let bit = |position: usize, column: usize| answer.get(2 + position / WORD * 4 + column) >> (position % WORD) & 1 == 1;
        let described = names.into_iter().enumerate().filter(|(_, name)| !name.is_empty());
        Ok(described
            .map(|(position, name)| Feature { name, active: bit(position, 2), changeable: bit(position, 0) && !bit(position, 3) })
            .collect())
    }

    /// Switches a feature, and checks that it is switched.
    pub(crate) fn set_feature(&self, feature: &str, on: bool) -> io::Result<()> {
        let names = self.feature_names()?;
        let missing = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let position = names.iter().position(|name| name == feature).ok_or_else(missing)?;
        let mut request = Request::announcing(SET_FEATURES, names.len().div_ceil(WORD));
        request.set(2 + position / WORD * 2, 1 << (position % WORD));
        request.set(3 + position / WORD * 2, u32::from(on) << (position % WORD));
        self.run(request)?;
        let now = self.features()?.into_iter().find(|state| state.name == feature);
        if now.is_some_and(|state| state.active == on) { Ok(()) } else { Err(missing()) }
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        let count = self.run(Request::count_features())?.features_counted();
        Ok(self.run(Request::name_features(count))?.names())
    }

    fn ask(&self, request: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut answer = libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } };
        // SAFETY: the requests passed here read and write one struct ifreq.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &raw mut answer) };
        if result == 0 { Ok(answer) } else { Err(io::Error::last_os_error()) }
    }

    /// Runs an ethtool request and returns it with the kernel's answer in it.
    pub(crate) fn run(&self, mut request: Request) -> io::Result<Request> {
        let data = request.as_mut_ptr().cast();
        let mut asked = libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
        // SAFETY: the kernel reads and writes as many bytes as the command's struct has, plus the entries that the struct announces (for
        // names, as many as the kernel has); `Request` is that long, and its announcements cannot be changed after it was made. It is
        // not shared, and takes any bytes.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut asked) };
        if result >= 0 { Ok(request) } else { Err(io::Error::last_os_error()) }
    }
}

//! The worker's way back into the kernel, by device.

use portcullis_nat::policy::DeviceId;

use crate::worker::Punter;

/// Injects frames into the receive path of the devices.
pub(super) struct KernelPunter {
    pub(super) kernel: portcullis_xsk::steer::Punter,
    /// The kernel's index of each device, by [`DeviceId`].
    pub(super) devices: Vec<u32>,
}

impl Punter for KernelPunter {
    fn punt(&mut self, device: DeviceId, packet: &[u8]) -> bool {
        let Some(&ifindex) = self.devices.get(usize::from(device.0)) else { return false };
        match self.kernel.punt(ifindex, packet) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "the kernel did not take a packet");
                false
            }
        }
    }
}

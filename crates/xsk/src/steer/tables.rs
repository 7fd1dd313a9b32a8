//! Writing a table of the kernel programs so that it becomes what is wanted, by differences.
//!
//! Knows keys and values as bytes. Called by [`super::Steer`]. Invariant: what is written is remembered entry by entry, so a failure
//! in the middle leaves a table that the next call completes; new entries go in before old ones go out.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapType};

use super::{External, Maps, Ports, SharedPorts, SteerError, at_most};
use crate::abi::{self, Bytes, ExternalValue, NearValue};

pub(super) fn error(table: &'static str, error: &libbpf_rs::Error) -> SteerError {
    // libbpf-rs keeps the number only in its kind; the text has it too.
    SteerError::Table { table, source: io::Error::other(error.to_string()) }
}

pub(super) fn put(table: &'static str, map: &MapHandle, key: &[u8], value: &[u8]) -> Result<(), SteerError> {
    map.update(key, value, MapFlags::ANY).map_err(|cause| error(table, &cause))
}

/// Takes an entry out; one that is not there is as good. An array has all entries always: there, zero stays, which says nothing.
pub(super) fn delete(table: &'static str, map: &MapHandle, key: &[u8]) -> Result<(), SteerError> {
    if map.map_type() == MapType::Array {
        return put(table, map, key, &vec![0; map.value_size() as usize]);
    }
    match map.delete(key) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(error(table, &cause)),
        _ => Ok(()),
    }
}

/// Makes a table what `wanted` is.
pub(super) fn replace<K, V, const N: usize, const M: usize>(
    table: &'static str,
    map: &MapHandle,
    written: &mut BTreeMap<K, V>,
    wanted: BTreeMap<K, V>,
    key_bytes: impl Fn(&K) -> [u8; N],
    value_bytes: impl Fn(&V) -> [u8; M],
) -> Result<(), SteerError>
where
    K: Ord + Copy,
    V: PartialEq,
{
    let gone: Vec<K> = written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    for (key, value) in wanted {
        if written.get(&key) != Some(&value) {
            put(table, map, &key_bytes(&key), &value_bytes(&value))?;
            written.insert(key, value);
        }
    }
    for key in gone {
        delete(table, map, &key_bytes(&key))?;
        written.remove(&key);
    }
    Ok(())
}

type WrittenExternals = BTreeMap<Ipv4Addr, Option<(u32, SharedPorts)>>;

/// Makes the table of external addresses what `wanted` is. Port sets are written before the address that uses them, and a slot is
/// given to another address only after the one that had it is gone.
pub(super) fn replace_externals(maps: &Maps, written: &mut WrittenExternals, wanted: &[External]) -> Result<(), SteerError> {
    at_most("external addresses", wanted.len(), abi::MAX_EXTERNALS)?;
    at_most("external addresses shared with the host", shared_count(wanted), abi::MAX_SHARED)?;
    let gone: Vec<Ipv4Addr> = written.keys().filter(|&&address| wanted.iter().all(|one| one.address != address)).copied().collect();
    for address in gone {
        delete("externals", &maps.externals, &address.octets())?;
        written.remove(&address);
    }
    for external in wanted {
        let before = written.get(&external.address);
        let slot = before.and_then(Option::as_ref).map(|(slot, _)| *slot);
        let entry = external.shared.as_ref().map(|ports| (slot.unwrap_or_else(|| free_slot(written)), ports.clone()));
        if before != Some(&entry) {
            put_external(maps, external.address, entry.as_ref())?;
            written.insert(external.address, entry);
        }
    }
    Ok(())
}

fn put_external(maps: &Maps, address: Ipv4Addr, entry: Option<&(u32, SharedPorts)>) -> Result<(), SteerError> {
    if let Some((slot, ports)) = entry {
        put_ports(maps, slot * 2 + abi::PORTS_TCP, &ports.tcp)?;
        put_ports(maps, slot * 2 + abi::PORTS_UDP, &ports.udp)?;
    }
    put("externals", &maps.externals, &address.octets(), &value_of(entry).bytes())
}

fn value_of(entry: Option<&(u32, SharedPorts)>) -> ExternalValue {
    match entry {
        Some((slot, _)) => ExternalValue { flags: abi::EXTERNAL_SHARED, slot: *slot },
        None => ExternalValue { flags: 0, slot: 0 },
    }
}

/// Of the addresses that are written, those that `wanted` leaves as they are, in their places in `near_externals`: the others are found in the
/// table alone while they change.
pub(super) fn near_that_stay(written: &WrittenExternals, wanted: &[External]) -> BTreeMap<u32, NearValue> {
    let stays = |external: &&External| {
        let before = written.get(&external.address);
        before.is_some_and(|entry| entry.as_ref().map(|(_, ports)| ports) == external.shared.as_ref())
    };
    near(wanted.iter().filter(stays).filter_map(|external| written.get_key_value(&external.address)))
}

/// The places of external addresses: of two that share one, the first has it.
pub(super) fn near<'w>(
    externals: impl Iterator<Item = (&'w Ipv4Addr, &'w Option<(u32, SharedPorts)>)>,
) -> BTreeMap<u32, NearValue> {
    let mut places = BTreeMap::new();
    for (&address, entry) in externals {
        let value = NearValue { address, external: value_of(entry.as_ref()) };
        places.entry(address.to_bits() % abi::MAX_NEAR).or_insert(value);
    }
    places
}

fn put_ports(maps: &Maps, index: u32, ports: &Ports) -> Result<(), SteerError> {
    let bytes: Vec<u8> = ports.iter().flat_map(|word| word.to_ne_bytes()).collect();
    put("shared_ports", &maps.shared_ports, &index.to_ne_bytes(), &bytes)
}

fn shared_count(externals: &[External]) -> usize {
    externals.iter().filter(|external| external.shared.is_some()).count()
}

/// The lowest slot that no address has; there is one, as the addresses were counted.
fn free_slot(written: &WrittenExternals) -> u32 {
    let taken = |slot| written.values().flatten().any(|(other, _)| *other == slot);
    (0..abi::MAX_SHARED).find(|&slot| !taken(slot)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_only_when_no_address_has_it() {
        let ports = || SharedPorts { tcp: Box::new([0; abi::PORT_WORDS]), udp: Box::new([0; abi::PORT_WORDS]) };
        let mut written = WrittenExternals::new();
        assert_eq!(free_slot(&written), 0);
        written.insert(Ipv4Addr::new(1, 1, 1, 1), Some((0, ports())));
        written.insert(Ipv4Addr::new(1, 1, 1, 2), None);
        written.insert(Ipv4Addr::new(1, 1, 1, 3), Some((2, ports())));
        assert_eq!(free_slot(&written), 1);
    }
}

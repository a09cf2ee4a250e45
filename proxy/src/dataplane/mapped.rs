//! Arrays of the program in memory that the kernel reads.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
    ptr::{read_volatile, write_volatile},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use memmap2::{MmapOptions, MmapRaw};
use proxy_common::maps::Control;

/// The elements of a `BPF_F_MMAPABLE` array.
pub(super) struct Mapped<T> {
    memory: MmapRaw,
    length: usize,
    element: PhantomData<T>,
}

impl<T: Copy> Mapped<T> {
    /// Maps the array `name`, which has `length` values of `T`. An element of the array may be several of them.
    pub(super) fn new(ebpf: &Ebpf, name: &str, length: usize) -> Result<Self> {
        let Some(Map::Array(data)) = ebpf.map(name) else { bail!("the program has no array {name}") };
        Self::of(data, name, length)
    }

    /// As [`Mapped::new`], of a map that is in hand.
    pub(super) fn of(data: &MapData, name: &str, length: usize) -> Result<Self> {
        // The kernel rounds elements up to 8 octets; those of proxy-common are that long already.
        let size = (length * size_of::<T>()).next_multiple_of(4096);
        let memory = MmapOptions::new()
            .len(size)
            .map_raw(data.fd().as_fd().as_raw_fd())
            .with_context(|| format!("failed to map {name} into memory"))?;
        Ok(Self { memory, length, element: PhantomData })
    }

    pub(super) fn element(&self, index: usize) -> *mut T {
        assert!(index < self.length, "index {index} in an array of {}", self.length);
        self.memory.as_mut_ptr().cast::<T>().wrapping_add(index)
    }

    pub(super) fn read(&self, index: usize) -> T {
        // SAFETY: `element` checked the index; the mapping lives as long as `self` and is page-aligned;
        // every bit pattern is a value of the plain types that are mapped here.
        unsafe { read_volatile(self.element(index)) }
    }

    pub(super) fn write(&self, index: usize, value: T) {
        // SAFETY: as in `read`; the kernel program reads these words and is written to bear any mix.
        unsafe { write_volatile(self.element(index), value) }
    }

    /// Writes many values that the program does not read now.
    pub(super) fn write_all(&self, from: usize, values: &[T]) {
        assert!(from + values.len() <= self.length, "{} values at {from} in an array of {}", values.len(), self.length);
        if !values.is_empty() {
            // SAFETY: the range was checked, and `values` is memory of our own, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.element(from), values.len()) }
        }
    }
}

impl Mapped<Control> {
    /// Changes fields that the program may see half changed: it bears any mix.
    pub(super) fn update(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.read(0);
        let (table, alive_until) = (control.table, control.alive_until);
        change(&mut control);
        // These have setters of their own, which store one word.
        (control.table, control.alive_until) = (table, alive_until);
        self.write(0, control);
    }

    /// Sets the flags by one store: no packet sees one of them without the others.
    pub(super) fn set_flags(&self, flags: u32) {
        // SAFETY: as in `set_table`.
        unsafe { write_volatile(&raw mut (*self.element(0)).flags, flags) }
    }

    /// Puts another table in force.
    pub(super) fn set_table(&self, state: u32) {
        // SAFETY: as in `write`, and the field is aligned: the program sees the old value or the new one.
        unsafe { write_volatile(&raw mut (*self.element(0)).table, state) }
    }

    pub(super) fn set_alive_until(&self, jiffies: u64) {
        // SAFETY: as in `set_table`.
        unsafe { write_volatile(&raw mut (*self.element(0)).alive_until, jiffies) }
    }
}

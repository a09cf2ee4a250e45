//! The smallest XDP program there is, `return XDP_PASS`, as an object file that `ip link set ... xdp` loads.
//!
//! A veth takes a frame sent by its peer's `XDP_TX` only if it has a native XDP program itself; a real NIC needs
//! nothing of the kind. Written out here so that the lab's network needs no eBPF compiler.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// `r0 = 2 (XDP_PASS); exit`
const PROGRAM: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// Section names: offsets 1, 5, 13, 21, 29.
const SECTION_NAMES: &[u8] = b"\0xdp\0license\0.symtab\0.strtab\0.shstrtab\0";
const SYMBOL_NAMES: &[u8] = b"\0pass\0";
const LICENSE: &[u8] = b"GPL\0";

const HEADER_SIZE: usize = 64;
const SYMBOL_SIZE: u64 = 24;
const EM_BPF: u16 = 247;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const FLAGS_EXECUTABLE: u64 = 6;
const FLAGS_DATA: u64 = 3;

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    data: Vec<u8>,
    link: u32,
    info: u32,
    entry_size: u64,
}

impl Section {
    fn plain(name: u32, kind: u32, flags: u64, data: &[u8]) -> Self {
        Self { name, kind, flags, data: data.to_vec(), link: 0, info: 0, entry_size: 0 }
    }
}

/// Writes the object file.
pub(super) fn write(path: &Path) -> anyhow::Result<()> {
    fs::write(path, object()).with_context(|| format!("failed to write {}", path.display()))
}

/// A little-endian ELF64 relocatable file: null, `xdp`, `license`, symbols, their names, section names.
fn object() -> Vec<u8> {
    let mut symbols = vec![0; usize::try_from(SYMBOL_SIZE).unwrap_or_default()];
    symbols.extend(1u32.to_le_bytes()); // name: "pass"
    symbols.extend([0x12, 0]); // global function
    symbols.extend(1u16.to_le_bytes()); // in section 1
    symbols.extend(0u64.to_le_bytes());
    symbols.extend((PROGRAM.len() as u64).to_le_bytes());
    let sections = [
        Section::plain(0, 0, 0, &[]),
        Section::plain(1, SHT_PROGBITS, FLAGS_EXECUTABLE, &PROGRAM),
        Section::plain(5, SHT_PROGBITS, FLAGS_DATA, LICENSE),
        Section { link: 4, info: 1, entry_size: SYMBOL_SIZE, ..Section::plain(13, SHT_SYMTAB, 0, &symbols) },
        Section::plain(21, SHT_STRTAB, 0, SYMBOL_NAMES),
        Section::plain(29, SHT_STRTAB, 0, SECTION_NAMES),
    ];
    let mut body = Vec::new();
    let mut table = Vec::new();
    for section in &sections {
        body.resize(body.len().next_multiple_of(8), 0);
        table.extend(section_header(section, (HEADER_SIZE + body.len()) as u64));
        body.extend(&section.data);
    }
    body.resize(body.len().next_multiple_of(8), 0);
    let mut file = file_header((HEADER_SIZE + body.len()) as u64);
    file.extend(body);
    file.extend(table);
    file
}

fn section_header(section: &Section, offset: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(section.name.to_le_bytes());
    header.extend(section.kind.to_le_bytes());
    header.extend(section.flags.to_le_bytes());
    header.extend(0u64.to_le_bytes()); // address
    header.extend(offset.to_le_bytes());
    header.extend((section.data.len() as u64).to_le_bytes());
    header.extend(section.link.to_le_bytes());
    header.extend(section.info.to_le_bytes());
    header.extend(8u64.to_le_bytes()); // alignment
    header.extend(section.entry_size.to_le_bytes());
    header
}

fn file_header(section_table: u64) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    header.resize(16, 0);
    header.extend(1u16.to_le_bytes()); // relocatable
    header.extend(EM_BPF.to_le_bytes());
    header.extend(1u32.to_le_bytes()); // version
    header.extend(0u64.to_le_bytes()); // entry
    header.extend(0u64.to_le_bytes()); // program headers
    header.extend(section_table.to_le_bytes());
    header.extend(0u32.to_le_bytes()); // flags
    for half in [64u16, 0, 0, 64, 6, 5] {
        header.extend(half.to_le_bytes()); // sizes and counts; section names are in section 5
    }
    header
}

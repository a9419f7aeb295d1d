//! Takes the kernel itself out of a bzImage, where it lies compressed (`Documentation/arch/x86/boot.rst`).
//!
//! QEMU starts the bare kernel by its PVH entry. That saves a second or more of unpacking in every guest.

use crate::process::filter;
use anyhow::{Context, bail, ensure};
use std::process::Command;

/// The programs that undo each compression, by the bytes that the payload begins with.
const PROGRAMS: [(&[u8], &str); 4] = [
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (&[0xfd, 0x37, 0x7a, 0x58, 0x5a], "xz"),
    (&[0x1f, 0x8b], "gzip"),
];

/// The kernel in `image`, as an ELF file.
pub(crate) fn vmlinux(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    let payload = payload(image)?;
    let program = decompressor(payload).context("the kernel is compressed in a way that is not known here")?;
    let (data, size) = match program {
        "gzip" => (payload, None),
        // The build adds the unpacked size, which these formats don't keep at their end as gzip does.
        _ => {
            let (data, size) = payload.split_last_chunk::<4>().context("the kernel is empty")?;
            (data, Some(u32::from_le_bytes(*size)))
        }
    };
    let kernel = filter(Command::new(program).arg("-dc"), data)?;
    ensure!(kernel.starts_with(b"\x7fELF"), "what {program} unpacked is no ELF file");
    if let Some(size) = size {
        ensure!(kernel.len() == size as usize, "{program} unpacked {} bytes of {size}", kernel.len());
    }
    Ok(kernel)
}

/// The compressed kernel within `image`.
fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let u32_at = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is shorter than its header")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("this is no kernel image for x86");
    }
    // Sectors of 512 bytes before the protected-mode code, one boot sector not counted; 0 means 4.
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + u32_at(0x248)?;
    image.get(start..start + u32_at(0x24c)?).context("the kernel image ends within the kernel")
}

fn decompressor(payload: &[u8]) -> Option<&'static str> {
    PROGRAMS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, program)| *program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_behind_the_setup_code() {
        let image = image(2, 0x40, b"payload");
        assert_eq!(payload(&image).unwrap(), b"payload");
    }

    #[test]
    fn no_setup_sectors_means_four() {
        let mut image = image(4, 0, b"payload");
        image[0x1f1] = 0;
        assert_eq!(payload(&image).unwrap(), b"payload");
    }

    #[test]
    fn a_truncated_image_and_any_other_file_are_refused() {
        let mut image = image(2, 0, b"payload");
        image.pop();
        assert!(payload(&image).is_err());
        assert!(payload(b"\x7fELF").is_err());
    }

    #[test]
    fn a_gzipped_kernel_is_unpacked_and_one_that_is_cut_short_is_refused() {
        let kernel = [b"\x7fELF".to_vec(), vec![7; 5000]].concat();
        let packed = filter(Command::new("gzip").arg("-c"), &kernel).unwrap();
        assert_eq!(vmlinux(&image(1, 8, &packed)).unwrap(), kernel);
        assert!(vmlinux(&image(1, 8, &packed[..20])).is_err());
    }

    fn image(sectors: u8, offset: u32, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; (usize::from(sectors) + 1) * 512 + offset as usize];
        image[0x1f1] = sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }
}

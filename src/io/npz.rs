//! Arrays in a `.npz` archive, uncompressed, as `numpy.savez` writes them.

use std::io::{self, Cursor, Write};

use ndarray::ArrayD;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::io::npy::header_bytes;
use crate::real::Real;

/// Writes named arrays. The same arrays give the same bytes.
pub fn write_npz<T: Real>(out: &mut dyn Write, arrays: &[(String, ArrayD<T>)]) -> io::Result<()> {
    // Members start with their sizes, so the archive is made in memory first.
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(true);
    for (name, array) in arrays {
        archive.start_file(format!("{name}.npy"), options)?;
        archive.write_all(&header_bytes(T::TYPE, array.shape()))?;
        let bytes: Vec<u8> = array.iter().flat_map(|x| x.le_bytes().as_ref().to_vec()).collect();
        archive.write_all(&bytes)?;
    }
    out.write_all(&archive.finish()?.into_inner())
}

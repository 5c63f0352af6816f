//! Typed memory of a device, freed when dropped.

use std::marker::PhantomData;

use super::{Argument, Device};
use crate::error::Result;
use crate::real::Real;

/// An array of elements on a device.
pub struct Array<'d, T> {
    device: &'d dyn Device,
    address: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<'d, T: bytemuck::Pod> Array<'d, T> {
    /// Allocates `len` elements. Their values are arbitrary until they are written.
    pub fn new(device: &'d dyn Device, len: usize) -> Result<Self> {
        let address = device.allocate((len * size_of::<T>()).max(1))?;
        Ok(Self { device, address, len, element: PhantomData })
    }

    /// Allocates `len` elements with all bytes 0.
    pub fn zeros(device: &'d dyn Device, len: usize) -> Result<Self> {
        let array = Self::new(device, len)?;
        device.fill(array.address, 0, len * size_of::<T>())?;
        Ok(array)
    }

    /// Copies elements to the device.
    pub fn from_slice(device: &'d dyn Device, elements: &[T]) -> Result<Self> {
        let mut array = Self::new(device, elements.len())?;
        array.upload(0, elements)?;
        Ok(array)
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Returns the device address of the element `from`; one past the end is allowed.
    pub fn address(&self, from: usize) -> u64 {
        assert!(from <= self.len, "within the array");
        self.address + (from * size_of::<T>()) as u64
    }

    /// Returns a kernel argument: a pointer to the first element.
    pub fn argument(&self) -> Argument {
        Argument::Address(self.address)
    }

    /// Overwrites elements from `start` on.
    pub fn upload(&mut self, start: usize, elements: &[T]) -> Result<()> {
        self.upload_parts(start, &[elements])
    }

    /// Overwrites elements from `start` on with those of the parts, one after another.
    pub fn upload_parts(&mut self, start: usize, parts: &[&[T]]) -> Result<()> {
        assert!(start + parts.iter().map(|part| part.len()).sum::<usize>() <= self.len, "within the array");
        let parts: Vec<&[u8]> = parts.iter().map(|part| bytemuck::cast_slice(part)).collect();
        self.device.upload(self.address(start), &parts)
    }

    /// Copies elements from `start` on to the host.
    pub fn download(&self, start: usize, elements: &mut [T]) -> Result<()> {
        assert!(start + elements.len() <= self.len, "within the array");
        self.device.download(self.address(start), bytemuck::cast_slice_mut(elements))
    }

    /// Copies all elements to the host.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); self.len];
        self.download(0, &mut elements)?;
        Ok(elements)
    }
}

impl<T: Real> Array<'_, T> {
    /// Sets every element to NaN, so that tests notice one that is never written.
    pub fn poison(&mut self) -> Result<()> {
        self.device.fill(self.address, 0xFF, self.len * size_of::<T>())
    }
}

impl<T> Drop for Array<'_, T> {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

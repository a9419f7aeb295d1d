//! What the kernel programs and the agent share: the layouts of the maps, and nothing else.
#![no_std]

pub mod abi;

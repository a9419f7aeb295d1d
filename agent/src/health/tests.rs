//! What [`Health`] decides, in simulated time.

mod backends;
mod closed;
mod clusters;
mod fail_static;
mod paths;
mod udp;

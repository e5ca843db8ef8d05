//! The composition root.

pub mod privileges;

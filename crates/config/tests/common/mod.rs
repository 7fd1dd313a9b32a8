//! What the property test shares with the fuzz target `config`.

pub(crate) mod text;

//! Chunks: reads batched per owner, updates tagged and retried, lists.

//! Leaves and ready-made stacks.

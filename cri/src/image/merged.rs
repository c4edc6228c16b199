//! What an image has at a path: its layers, the uppermost first, without a mount.

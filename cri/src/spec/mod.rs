//! What CRI asks for as an OCI configuration. Pure: whatever it needs of the node is given.

"""Tools in WebAssembly: the catalog of what there is, the pool that runs it, the workers it runs in."""

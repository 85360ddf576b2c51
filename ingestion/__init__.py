"""Takes snapshots of live feeds into the lake's bronze layer: fetching and keeping, no parsing."""

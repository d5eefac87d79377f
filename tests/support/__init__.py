"""What tests stand on: processes that start at once, servers that are shared, fakes and samples."""

"""Side-by-side measurements, each printing its n, hardware, versions and spread; never asserted in tests."""

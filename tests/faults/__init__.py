"""What happens to acknowledged work when processes, power and disks fail."""

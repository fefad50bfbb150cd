"""What `bock connect` needs of the machine that it runs on: block devices, and a record of them."""

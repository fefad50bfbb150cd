"""Write-back in front of a volume of any kind of pool: docs/write-back.md."""

"""Bad input: what happens to records that anybody may have written, on every topic that something of ours reads."""

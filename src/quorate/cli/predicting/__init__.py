"""What ``quorate predict`` is made of: rows from files of any size, finished parts that survive an interruption, answers to files."""

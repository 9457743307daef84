"""What clray is measured against: scripts a researcher would write."""

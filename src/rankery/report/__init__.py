"""Pages that people read: one self-contained HTML file each, and the charts in it."""

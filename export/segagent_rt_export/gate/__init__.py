"""The export gate: every graph is compared with torch before a bundle is written."""

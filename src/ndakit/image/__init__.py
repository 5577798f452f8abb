"""Built images on disk: records, formats, flash layouts, bills of materials, sidecars."""

"""Gray planes: channels combined, contrast, preprocessing, sharpness."""

"""Images and labels: reading, preprocessing, labelled data sets, crops."""

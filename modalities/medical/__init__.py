"""Medical scans: radiographs and volumes, from DICOM and NIfTI."""

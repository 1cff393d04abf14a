"""The admission server: HTTPS, certificates, and the way from an AdmissionReview to a decision and back."""

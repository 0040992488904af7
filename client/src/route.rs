//! Which replica to ask and what to do after an error. Pure: time and randomness are passed in.

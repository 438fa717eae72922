// A file for targets that exist for their precompiled headers.

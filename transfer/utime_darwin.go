package transfer

// utimeOmit leaves a time as it is; package unix does not have it for this system.
const utimeOmit = -2
